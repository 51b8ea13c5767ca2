"""The slice in which a moving mask begins, and the order in which the others follow it.

Shapes: B batch, T slices, R steps away from the base slice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from tatscli.masking.draw import uniform_scores

Base = Literal["energy", "middle", "random"]


def base_slice_B(energy_BTS: Tensor, base: Base, generator: Generator | None) -> Tensor:
    """Choose each clip's base slice: that with most motion energy, the middle one, or any."""
    B, T, _ = energy_BTS.shape
    if base == "energy":
        return energy_BTS.sum(dim=2).argmax(dim=1)
    if base == "random":
        return uniform_scores((B, T), energy_BTS.device, generator).argmax(dim=1)
    return torch.full((B,), T // 2, device=energy_BTS.device)


def steps_2BR(base_B: Tensor, slices: int) -> tuple[Tensor, Tensor]:
    """List the slices whose motion leads away from the base slice, step by step.

    Motion belongs to the slice it leads into: the way back from slice t runs against slice t's.

    Returns:
        The slice of each step, first all clips forwards, then all backwards, (2B, R), and whether
        there is such a step; where not, the slice is any.
    """
    away_R = torch.arange(slices - 1, device=base_B.device)
    step_2BR = torch.cat([base_B[:, None] + 1 + away_R, base_B[:, None] - away_R])
    exists_2BR = (step_2BR >= 1) & (step_2BR < slices)
    return step_2BR.clamp(0, slices - 1), exists_2BR


def by_slice(found_2BR: Tensor, base_B: Tensor, slices: int) -> Tensor:
    """Sort what was found at 0, 1 ... steps away, forwards and backwards, by slice.

    Args:
        found_2BR: (2B, T, ...), one entry for the base slice and each step away from it.
        base_B: The base slices.
        slices: T.

    Returns:
        (B, T, ...).
    """
    B = len(base_B)
    away_BT = torch.arange(slices, device=base_B.device) - base_B[:, None]
    clip_BT = torch.arange(B, device=base_B.device)[:, None] + B * (away_BT < 0)
    return found_2BR[clip_BT, away_BT.abs()]
