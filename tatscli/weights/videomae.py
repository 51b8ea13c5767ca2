"""The layout of official files: VideoMAE, VideoMAE V2 and AdaMAE, pretrained and fine-tuned.

MCG-NJU/VideoMAE, OpenGVLab/VideoMAEv2 and wgcban/adamae use the same names. A pretraining has
`encoder.*`, `encoder_to_decoder.weight`, `mask_token` and `decoder.*`; a fine-tuning has the
encoder without a prefix, `fc_norm.*` and `head.*`, and no last norm of the encoder.

Shapes: D width, N tokens of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.weights.count import Renaming
from tatscli.weights.spec import BRANCH, CLASSIFIER, ENCODER, POSITIONS

LAYOUT = "VideoMAE"

_FOLDED = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}
"""LayerScale factors (`init_values`), and the layers whose outputs they scale."""

_SAMPLER = "encoder.get_token_probs."
_SAMPLER_NAMES = {
    "0.norm1": "trunk.norm1",
    "0.attn.qkv": "trunk.qkv",
    "0.attn.proj": "trunk.proj",
    "0.norm2": "trunk.norm2",
    "0.mlp.fc1": "trunk.fc1",
    "0.mlp.fc2": "trunk.fc2",
    "1": "actor",
}
"""AdaMAE's sampler, a block and a linear layer, by our names (`masking/rl/policy.py`)."""
_SAMPLER_TENSORS = 14


def from_videomae(source: dict[str, Tensor], *, called: str) -> Renaming:
    """Rename the tensors of an official file.

    Args:
        source: Its tensors, without prefixes of wrapped models.
        called: Its name in messages.

    Raises:
        CheckpointError: If its attention or classifier differs from ours.
    """
    names = Renaming(source, LAYOUT)
    _refuse_others(source, called)
    fold_gammas(names, _FOLDED)
    split_fused_biases(names)
    if any(name.startswith(ENCODER) for name in source):
        names.take_all(_pretrained_name)
    else:
        names.take_all(_finetuned_name)
        if "head.weight" in names.tensors:
            make_last_norm(names, "a fine-tuned file has no last norm of the encoder")
    make_biases(names)
    return names


def to_videomae(tensors: dict[str, Tensor], *, kind: str) -> dict[str, Tensor]:
    """Rename our tensors to the names in official files.

    Args:
        tensors: A pretraining with one decoder, an encoder, or a VideoMAE classifier.
        kind: `pretrained` or `finetuned`.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if kind == "finetuned":
            renamed[name.removeprefix(ENCODER)] = tensor
        else:
            renamed[name.removeprefix(BRANCH)] = tensor
    return renamed


def sampler_of(names: Renaming, tokens: int) -> dict[str, Tensor]:
    """Rename AdaMAE's sampler for our `adamae` mask, or count it as dropped.

    The bias of its last layer shifts all scores equally, which the softmax ignores.

    Args:
        names: The renaming, after everything else was renamed.
        tokens: Tokens N of a clip; the sampler has a position for each.
    """
    theirs = [one for one in names.left if one.startswith((_SAMPLER, "encoder.pos_embed_probs"))]
    if not theirs:
        return {}
    found: dict[str, Tensor] = {}
    table = names.left.get("encoder.pos_embed_probs")
    if len(theirs) == _SAMPLER_TENSORS and table is not None and table.shape[:2] == (1, tokens):
        for name in theirs:
            layer, _, part = name.removeprefix(_SAMPLER).rpartition(".")
            if layer in _SAMPLER_NAMES and (layer, part) != ("1", "bias"):
                found[f"policy.{_SAMPLER_NAMES[layer]}.{part}"] = names.left[name].float()
        found["policy.position"] = table[0].float()
    if len(found) != _SAMPLER_TENSORS - 1:
        reason = "a sampler that is not AdaMAE's, or for another number of tokens"
        names.drop(reason, lambda name: name in theirs)
        return {}
    names.drop("the bias of AdaMAE's scores, which the softmax ignores", _is_actor_bias)
    for name in theirs:
        if not _is_actor_bias(name):
            names.pop(name)
    names.count.notes.append("AdaMAE's sampler was read for `mask.kind: adamae`")
    return found


def fold_gammas(names: Renaming, folded: dict[str, str]) -> None:
    """Fold LayerScale factors into the layers before them.

    Args:
        names: The renaming; remaining layers are changed.
        folded: Name of each factor in its block, and of the layer whose output it scales.
    """
    taken = 0
    for name in list(names.left):
        block, part = _split_block(name)
        layer = f"{block}{folded[part]}" if part in folded else None
        weight = names.left.get(f"{layer}.weight")
        if layer is None or weight is None:
            continue
        gamma_D = names.left.pop(name).float()
        names.left[f"{layer}.weight"] = gamma_D[:, None] * weight.float()
        bias = names.left.get(f"{layer}.bias")
        if bias is not None:
            names.left[f"{layer}.bias"] = gamma_D * bias.float()
        taken += 1
    if taken:
        names.count.notes.append(
            f"{taken} LayerScale factors (`{'`, `'.join(folded)}`) folded into the layers before "
            "them"
        )


def split_fused_biases(names: Renaming) -> None:
    """Split fused biases of queries, keys and values; those of the keys change nothing."""
    fused = [name for name in names.left if name.endswith("attn.qkv.bias")]
    for name in fused:
        query_D, _, value_D = names.left.pop(name).chunk(3)
        layer = name.removesuffix("qkv.bias")
        names.left[f"{layer}q_bias"], names.left[f"{layer}v_bias"] = query_D, value_D
    if fused:
        names.count.drop("the keys' third of fused biases, which the softmax ignores", fused)


def make_biases(names: Renaming) -> None:
    """Add zero biases of queries and values to blocks that have neither (`qkv_bias: false`)."""
    for name in [one for one in names.tensors if one.endswith("attn.qkv.weight")]:
        layer, width = name.removesuffix("qkv.weight"), names.tensors[name].shape[-1]
        biases = [f"{layer}q_bias", f"{layer}v_bias"]
        if not any(one in names.tensors for one in biases):
            for one in biases:
                names.make(one, torch.zeros(width), "zero biases, since it was trained without")


def make_last_norm(names: Renaming, reason: str) -> None:
    """Add the last norm, of ones and zeros, of an encoder whose classifier does not use it."""
    patches = names.tensors.get(f"{ENCODER}patch_embed.proj.bias")
    if patches is None or f"{ENCODER}norm.weight" in names.tensors:
        return
    for part, value in (("weight", torch.ones_like(patches)), ("bias", torch.zeros_like(patches))):
        names.make(f"{ENCODER}norm.{part}", value, reason)


def _pretrained_name(name: str) -> str | None:
    if name.startswith((_SAMPLER, "encoder.pos_embed")) or name.endswith(POSITIONS):
        return None
    if name.startswith(ENCODER):
        return name
    ours = name in ("encoder_to_decoder.weight", "mask_token") or name.startswith("decoder.")
    return BRANCH + name if ours else None


def _finetuned_name(name: str) -> str | None:
    if name in CLASSIFIER:
        return name
    return ENCODER + name if name.startswith(("patch_embed.", "blocks.", "norm.")) else None


def _refuse_others(source: Iterable[str], called: str) -> None:
    """Refuse cosine attention, and classifiers that use the first token."""
    names = set(source)
    scaled = [name for name in names if name.endswith("attn.scale")]
    if scaled:
        raise CheckpointError(
            f"`{called}` uses cosine attention (`cos_attn`; it has `{min(scaled)}`), which our "
            "blocks do not have"
        )
    if "head.weight" in names and "fc_norm.weight" not in names and "norm.weight" in names:
        raise CheckpointError(
            f"`{called}` classifies from its first token (`use_mean_pooling` off): it has a last "
            "norm and no `fc_norm`; our classifier averages all tokens",
        )


def _split_block(name: str) -> tuple[str, str]:
    found = re.match(r"(.*\bblocks\.\d+\.)(.+)$", name)
    return (found[1], found[2]) if found else ("", name)


def _is_actor_bias(name: str) -> bool:
    return name == f"{_SAMPLER}1.bias"
