"""The layout of `transformers`: its names and its three spellings of biases.

Queries, keys and values are three layers there. Their biases are called `q_bias` and `v_bias` in
files of version 4 and of 5.18 and later, and `query.bias` and `value.bias` inside newer models.
Versions 5.0 to 5.17 also had a `key.bias`, which changes no output: it adds the same number to
every score of a query. These versions read the biases of version 4 files as zeros, and saved them
so.

Shapes: D width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.nn.vit import NORM_EPS
from tatscli.weights.count import Renaming
from tatscli.weights.spec import BRANCH, ENCODER
from tatscli.weights.videomae import make_biases, make_last_norm

LAYOUT = "transformers"
BASE = "videomae."

_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_BARE = ("embeddings.", "encoder.layer.", "layernorm.")
"""Prefixes of an encoder that was saved on its own."""
_STACKS = {f"{BASE}encoder.layer.": ENCODER, "decoder.decoder_layers.": f"{BRANCH}decoder."}
_LAYERS = {
    f"{BASE}embeddings.patch_embeddings.projection": f"{ENCODER}patch_embed.proj",
    f"{BASE}layernorm": f"{ENCODER}norm",
    "decoder.norm": f"{BRANCH}decoder.norm",
    "decoder.head": f"{BRANCH}decoder.head",
    "fc_norm": "fc_norm",
    "classifier": "head",
}
_SINGLE = {
    "encoder_to_decoder.weight": f"{BRANCH}encoder_to_decoder.weight",
    "mask_token": f"{BRANCH}mask_token",
}
_BIASES = {"q_bias": "q_bias", "v_bias": "v_bias", "query.bias": "q_bias", "value.bias": "v_bias"}


def from_hf(source: dict[str, Tensor], settings: dict[str, Any], *, called: str) -> Renaming:
    """Rename the tensors of a VideoMAE of `transformers`.

    Args:
        source: Its tensors.
        settings: Its `config.json`.
        called: Its name in messages.

    Raises:
        CheckpointError: If it computes something that our model cannot.
    """
    _refuse_others(source, settings, called)
    if not any(name.startswith(BASE) for name in source):  # a `VideoMAEModel` of its own
        source = {BASE + name if name.startswith(_BARE) else name: source[name] for name in source}
    names = Renaming(source, LAYOUT)
    names.drop("biases of keys, which the softmax ignores", lambda one: one.endswith("key.bias"))
    for theirs, ours in _STACKS.items():
        _take_stack(names, theirs, ours)
    names.take_all(_layer_name)
    _note_zeros(names)
    if "head.weight" in names.tensors:
        make_last_norm(names, "with mean pooling the encoder has no last norm")
    elif settings.get("use_mean_pooling", True) and f"{ENCODER}norm.weight" in names.tensors:
        names.count.notes.append(
            "`use_mean_pooling` is on in its `config.json`: transformers itself ignores the "
            "encoder's last norm, which is in the file and is read here"
        )
    biased = any(name.endswith("q_bias") for name in names.tensors)
    if biased and not settings.get("qkv_bias", settings.get("qv_bias", True)):
        names.count.notes.append(
            "its `config.json` says that queries and values have no biases, but the weights have "
            "them: they are read"
        )
    make_biases(names)
    eps = settings.get("layer_norm_eps", 1e-12)
    if eps != NORM_EPS:
        names.count.notes.append(f"its norms have `layer_norm_eps: {eps:g}`, ours {NORM_EPS:g}")
    return names


def to_hf(tensors: dict[str, Tensor], *, prefix: str = BASE) -> dict[str, Tensor]:
    """Rename our tensors to the names in files of `transformers`.

    Args:
        tensors: A pretraining with one decoder, an encoder, or a VideoMAE classifier.
        prefix: Prefix of the encoder; empty for a `VideoMAEModel`.
    """
    layers = {ours: theirs for theirs, ours in _LAYERS.items()}
    parts = {ours: theirs for theirs, ours in _BLOCK.items()}
    single = {ours: theirs for theirs, ours in _SINGLE.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        block = re.match(r"(.+\.)blocks\.(\d+)\.(.+)$", name)
        if block is None:
            renamed[single.get(name) or f"{layers[layer]}.{part}"] = tensor
            continue
        stack, number, inner = block.groups()
        base = next(theirs for theirs, ours in _STACKS.items() if ours == stack)
        at = f"{base}{number}."
        if inner == "attn.qkv.weight":
            for word, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{at}attention.attention.{word}.weight"] = third
        elif inner in ("attn.q_bias", "attn.v_bias"):
            renamed[f"{at}attention.attention.{inner.removeprefix('attn.')}"] = tensor
        else:
            layer, _, part = inner.rpartition(".")
            renamed[f"{at}{parts[layer]}.{part}"] = tensor
    return {
        prefix + name.removeprefix(BASE) if name.startswith(BASE) else name: tensor
        for name, tensor in renamed.items()
    }


def _take_stack(names: Renaming, theirs: str, ours: str) -> None:
    """Rename the blocks of encoder or decoder; queries, keys and values become one weight."""
    pattern = re.compile(re.escape(theirs) + r"(\d+)\.attention\.attention\.query\.weight$")
    for found in [one for name in list(names.left) if (one := pattern.match(name))]:
        inner, block = f"{theirs}{found[1]}.attention.attention.", f"{ours}blocks.{found[1]}."
        three = [f"{inner}{word}.weight" for word in ("query", "key", "value")]
        if all(one in names.left for one in three):
            names.tensors[f"{block}attn.qkv.weight"] = torch.cat([names.pop(one) for one in three])
        for bias, name in _BIASES.items():
            if inner + bias in names.left and f"{block}attn.{name}" not in names.tensors:
                names.take(inner + bias, f"{block}attn.{name}")
    parts = re.compile(re.escape(theirs) + r"(\d+)\.(.+)\.(weight|bias)$")

    def rename(name: str) -> str | None:
        found = parts.match(name)
        if found is None or found[2] not in _BLOCK:
            return None
        return f"{ours}blocks.{found[1]}.{_BLOCK[found[2]]}.{found[3]}"

    names.take_all(rename)


def _layer_name(name: str) -> str | None:
    layer, _, part = name.rpartition(".")
    return _SINGLE.get(name) or (f"{_LAYERS[layer]}.{part}" if layer in _LAYERS else None)


def _note_zeros(names: Renaming) -> None:
    """Note biases that were probably lost by a version of `transformers` that loses them."""
    biases = [one for name, one in names.tensors.items() if name.endswith(("q_bias", "v_bias"))]
    dropped = any("biases of keys" in reason for reason in names.count.dropped)
    if dropped and biases and not any(one.any() for one in biases):
        names.count.notes.append(
            "all biases of queries and values are zero: transformers 5.0 to 5.17, which wrote "
            "this, reads those of older files as zeros, so they are most likely lost; use the "
            "original file"
        )


def _refuse_others(source: dict[str, Tensor], settings: dict[str, Any], called: str) -> None:
    """Refuse models with VideoMAE's names that compute something else."""
    if settings.get("hidden_act", "gelu") != "gelu":
        raise CheckpointError(
            f"`{called}` has `hidden_act: {settings['hidden_act']}`; ours is `gelu`"
        )
    if "classifier.weight" in source and "fc_norm.weight" not in source:
        raise CheckpointError(
            f"`{called}` classifies from its first token (`use_mean_pooling: false`) and has no "
            "`fc_norm`; our classifier averages all tokens"
        )
