"""`MotionField`: codec motion of a batch of clips, sampled onto the token grid of the view.

Shapes: B batch, T frames, h and w token rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MotionField:
    """Displacement of content in pixels of the view per stored-frame step, x first.

    Attributes:
        field_BThw2: float32; zero where the codec gave no vector.
        valid_BT: bool; False for frames without vectors (key frames, other codecs).
    """

    field_BThw2: Tensor
    valid_BT: Tensor

    def to(self, device: torch.device | str) -> MotionField:
        """Return the same motion on `device`."""
        return MotionField(
            self.field_BThw2.to(device, non_blocking=True),
            self.valid_BT.to(device, non_blocking=True),
        )

    def magnitude_BN(self, slices: int) -> Tensor:
        """Return the mean speed of each token over the valid frames of its tubelet: (B, N)."""
        B, T, h, w, _ = self.field_BThw2.shape
        speed = self.field_BThw2.norm(dim=-1).reshape(B, slices, T // slices, h * w)
        valid = self.valid_BT.reshape(B, slices, T // slices, 1).to(speed.dtype)
        return ((speed * valid).sum(2) / valid.sum(2).clamp(min=1)).reshape(B, -1)
