"""Take the weights of transformers' VideoMAE for ours, name by name, so that leftovers show."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def blocks(source: dict[str, Tensor], theirs: str, ours: str, depth: int) -> dict[str, Tensor]:
    """Take `depth` blocks out of `source`."""
    out = {}
    for i in range(depth):
        layer, block = f"{theirs}.{i}", f"{ours}.{i}"
        parts = [
            source.pop(f"{layer}.attention.attention.{x}.weight") for x in ("query", "key", "value")
        ]
        out[f"{block}.attn.qkv.weight"] = torch.cat(parts)
        out[f"{block}.attn.q_bias"] = source.pop(f"{layer}.attention.attention.query.bias")
        out[f"{block}.attn.v_bias"] = source.pop(f"{layer}.attention.attention.value.bias")
        for a, b in BLOCK.items():
            for part in ("weight", "bias"):
                out[f"{block}.{b}.{part}"] = source.pop(f"{layer}.{a}.{part}")
    return out


def moved(source: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Take single tensors out of `source`."""
    return {ours: source.pop(theirs) for theirs, ours in names.items()}


def both(theirs: str, ours: str) -> dict[str, str]:
    """Name the weight and the bias of a layer."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}


def randomize(model: nn.Module) -> None:
    """Move every parameter, biases and norms too, away from its start value."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
