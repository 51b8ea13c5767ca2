"""VQGANs of taming-transformers (Esser et al. 2021, arXiv 2012.09841), such as f16 with 1,024 or
16,384 codes: their tensors in diffusers' `VQModel`, which is the same network.

The checkpoints are pickles of a training: only tensors are read, no code in them is run.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.files import sha256
from tatscli.tokenizer.base import Tokenizer
from tatscli.tokenizer.diffusers import VqModel, import_diffusers
from tatscli.weights.read import read_weights

_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_NAMES = [
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


def open_taming(path: Path) -> tuple[Tokenizer, str]:
    """Open a VQGAN; its adapter, and the SHA-256 of the file.

    Sizes are read off the tensors, so no configuration is needed.

    Raises:
        CheckpointError: If the file cannot be read, or is no such VQGAN; the message counts the
            tensors that fit.
    """
    given = {
        name: value
        for name, value in read_weights(path, key="tokenizer.path").items()
        if name.startswith(_PARTS)
    }
    try:
        model = import_diffusers().VQModel(**_sizes(given))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"`tokenizer.path: {path}` is not a VQGAN of taming-transformers: it has no {error}",
            hint="Gumbel VQGANs have no codebook; f16 with 1,024 or 16,384 codes is supported",
        ) from error
    wanted = model.state_dict()
    named = _renamed(given, ups=len(model.config.block_out_channels))
    named = {
        # A 1x1 convolution is a linear layer.
        name: value.flatten(1) if value.dim() == 4 and wanted[name].dim() == 2 else value
        for name, value in named.items()
        if name in wanted
    }
    wrong = [n for n, one in wanted.items() if n not in named or named[n].shape != one.shape]
    if wrong or len(named) != len(given):
        raise CheckpointError(
            f"`tokenizer.path: {path}` does not fit: {len(wanted) - len(wrong)} of {len(wanted)} "
            f"tensors match, {len(given) - len(named)} more are unknown"
            + (f"; the first that is missing is `{wrong[0]}`" if wrong else "")
        )
    model.load_state_dict(named)
    return VqModel(model), sha256(path)


def _sizes(given: dict[str, Tensor]) -> dict[str, object]:
    """Read a `VQModel`'s arguments off the tensors.

    Raises:
        KeyError: If one of them is not there.
    """
    codes, width = given["quantize.embedding.weight"].shape
    latent = given["post_quant_conv.weight"].shape[0]
    levels = _count(given, r"^encoder\.down\.(\d+)\.")
    if levels == 0:
        raise KeyError("encoder.down.0")
    wide = [given[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    attends = [f"encoder.down.{i}.attn.0.q.weight" in given for i in range(levels)]
    return {
        "block_out_channels": tuple(wide),
        "layers_per_block": _count(given, r"^encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if one else "DownEncoderBlock2D" for one in attends
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if one else "UpDecoderBlock2D" for one in reversed(attends)
        ),
        "latent_channels": latent,
        "num_vq_embeddings": codes,
        "vq_embed_dim": width,
    }


def _count(given: dict[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in given if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _renamed(given: dict[str, Tensor], *, ups: int) -> dict[str, Tensor]:
    """Give tensors diffusers' names; its decoder counts from coarse to fine, taming's back."""
    renamed = {}
    for name, value in given.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        renamed[
            re.sub(
                r"^(decoder\.up_blocks\.)(\d+)",
                lambda match: f"{match[1]}{ups - 1 - int(match[2])}",
                name,
            )
        ] = value
    return renamed
