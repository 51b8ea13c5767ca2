"""Motion fields made by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.motion import MotionField


def motion_of(
    field_BThw2: Tensor,
    *,
    speed_BThw: Tensor | None = None,
    valid_BT: Tensor | None = None,
    missing_B: Tensor | None = None,
    fallback_B: Tensor | None = None,
    patch: int = 16,
) -> MotionField:
    """Fill in what follows from the displacements: their lengths, and that all is known."""
    B, T = field_BThw2.shape[:2]
    if missing_B is None:
        missing_B = torch.zeros(B, dtype=torch.bool)
    return MotionField(
        field_BThw2,
        field_BThw2.norm(dim=-1) if speed_BThw is None else speed_BThw,
        torch.ones(B, T, dtype=torch.bool) if valid_BT is None else valid_BT,
        missing_B,
        missing_B if fallback_B is None else fallback_B,
        patch,
    )
