"""Where a moving mask begins, and the order in which the other frames of a clip follow.

Shapes: B batch, F frames, S sites, R steps away from the base frame.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tatscli.draws import Draws

Base = Literal["energy", "middle", "random"]


def base_frame_B(energy_BFS: Tensor, base: Base, draws: Draws) -> Tensor:
    """Choose each clip's base frame: that with most motion energy, the middle one, or any."""
    B, F, _ = energy_BFS.shape
    if base == "energy":
        return energy_BFS.sum(dim=2).argmax(dim=1)
    if base == "random":
        return draws.uniform((B, F), energy_BFS.device).argmax(dim=1)
    return torch.full((B,), F // 2, device=energy_BFS.device)


def steps_2BR(base_B: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """List the frames whose motion leads away from the base frame, step by step.

    Motion belongs to the frame it leads into: the way back from frame f runs against frame f's.

    Returns:
        The frame of each step, first all clips forwards, then all backwards, (2B, R), and whether
        there is such a step; where not, the frame is any.
    """
    away_R = torch.arange(frames - 1, device=base_B.device)
    step_2BR = torch.cat([base_B[:, None] + 1 + away_R, base_B[:, None] - away_R])
    exists_2BR = (step_2BR >= 1) & (step_2BR < frames)
    return step_2BR.clamp(0, frames - 1), exists_2BR


def by_frame(found_2BF: Tensor, base_B: Tensor) -> Tensor:
    """Sort what was found at 0, 1 ... steps away, forwards and backwards, by frame.

    Args:
        found_2BF: (2B, F, ...), one entry for the base frame and each step away from it.
        base_B: The base frames.

    Returns:
        (B, F, ...).
    """
    B, frames = len(base_B), found_2BF.shape[1]
    away_BF = torch.arange(frames, device=base_B.device) - base_B[:, None]
    clip_BF = torch.arange(B, device=base_B.device)[:, None] + B * (away_BF < 0)
    return found_2BF[clip_BF, away_BF.abs()]
