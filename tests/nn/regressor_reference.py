"""The latent regressor once more, from CAE's formula: one number at a time, in Python floats.

Reads the parameters of a `Regressor` and shares none of its code. Shapes as there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tatscli.nn.regressor import CrossBlock, Regressor

Vector = list[float]


def plus(left: Vector, right: Vector) -> Vector:
    return [a + b for a, b in zip(left, right, strict=True)]


def linear(layer: nn.Linear, x: Vector) -> Vector:
    rows: list[Vector] = layer.weight.double().tolist()
    bias: Vector = [0.0] * len(rows) if layer.bias is None else layer.bias.double().tolist()
    return [
        sum(w * value for w, value in zip(row, x, strict=True)) + b
        for row, b in zip(rows, bias, strict=True)
    ]


def normed(layer: nn.LayerNorm, x: Vector) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    scale, shift = layer.weight.double().tolist(), layer.bias.double().tolist()
    return [
        (value - mean) / math.sqrt(variance + 1e-6) * g + b
        for value, g, b in zip(x, scale, shift, strict=True)
    ]


def position(index: int, width: int) -> Vector:
    code = []
    for j in range(width):
        angle = index / 10000 ** ((j - j % 2) / width)
        code.append(math.cos(angle) if j % 2 else math.sin(angle))
    return code


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def stepped(
    block: CrossBlock, queries: list[Vector], asked: list[int], latents: list[Vector], at: list[int]
) -> list[Vector]:
    """One block for one clip: the new queries."""
    width, size = block.width, block.width // block.heads
    key_inputs = [plus(z, position(i, width)) for z, i in zip(latents, at, strict=True)]
    key_inputs += [plus(u, position(i, width)) for u, i in zip(queries, asked, strict=True)]
    keys = [linear(block.k, normed(block.norm_k, x)) for x in key_inputs]
    values = [linear(block.v, normed(block.norm_v, x)) for x in [*latents, *queries]]
    new = []
    for u, index in zip(queries, asked, strict=True):
        q = linear(block.q, normed(block.norm_q, plus(u, position(index, width))))
        mixed = [0.0] * width
        for head in range(block.heads):
            part = range(head * size, (head + 1) * size)
            scores = [sum(q[c] * key[c] for c in part) / math.sqrt(size) for key in keys]
            total = sum(math.exp(score) for score in scores)
            for score, value in zip(scores, values, strict=True):
                for c in part:
                    mixed[c] += math.exp(score) / total * value[c]
        gamma_attn, gamma_mlp = block.gamma_attn.tolist(), block.gamma_mlp.tolist()
        attended = linear(block.proj, mixed)
        b = normed(
            block.norm_mlp,
            plus(u, [g * value for g, value in zip(gamma_attn, attended, strict=True)]),
        )
        inner, _, outer = block.mlp
        assert isinstance(inner, nn.Linear)
        assert isinstance(outer, nn.Linear)
        branch = linear(outer, [gelu(value) for value in linear(inner, b)])
        new.append(plus(b, [g * value for g, value in zip(gamma_mlp, branch, strict=True)]))
    return new


def looped(
    regressor: Regressor, latents_BKL: Tensor, visible_BK: Tensor, predict_BM: Tensor
) -> Tensor:
    """The regressed latents (B, M, D), float64."""
    clips = []
    for b in range(latents_BKL.shape[0]):
        latents: list[Vector] = latents_BKL[b].double().tolist()
        if regressor.depth and regressor.latent_width != regressor.width:
            widen, norm = regressor.adapter
            latents = [normed(norm, linear(widen, z)) for z in latents]
        asked, at = predict_BM[b].tolist(), visible_BK[b].tolist()
        queries: list[Vector] = [regressor.mask_token[0, 0].double().tolist() for _ in asked]
        for block in regressor.blocks:
            queries = stepped(block, queries, asked, latents, at)
        if regressor.depth:
            queries = [normed(regressor.norm, u) for u in queries]
        clips.append(queries)
    return torch.tensor(clips, dtype=torch.float64)
