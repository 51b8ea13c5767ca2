"""`MotionField`: the motion of a batch of clips, sampled onto the token grid of the view.

Shapes: B batch, T frames, N tokens, S sites of a frame, h and w token rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MotionField:
    """How content moved into each frame of a clip since the frame before.

    Attributes:
        field_BThw2: float32, displacement of the content since the clip's previous frame, in pixels
            of the view, x first; 0 where unknown. For the first frame, as if there were one before.
        speed_BThw: float32, length of the way that content took, added up over the frames between;
            in pixels of the view. From `framediff`, source or fallback, it is how much the picture
            changed, in grey levels: every threshold in pixels then counts those.
        valid_BT: bool; whether the source knew the motion of this frame. Where it did not (key
            frames), field and speed are those of a neighbour.
        missing_B: bool; nothing is known of the whole clip, even after the fallback.
        fallback_B: bool; the source knew no motion: what is here is the fallback's, or nothing.
        patch: Height and width of a token in pixels of the view.
    """

    field_BThw2: Tensor
    speed_BThw: Tensor
    valid_BT: Tensor
    missing_B: Tensor
    fallback_B: Tensor
    patch: int

    @classmethod
    def cat(cls, fields: Sequence[MotionField]) -> MotionField:
        """Join batches."""
        return cls(
            torch.cat([one.field_BThw2 for one in fields]),
            torch.cat([one.speed_BThw for one in fields]),
            torch.cat([one.valid_BT for one in fields]),
            torch.cat([one.missing_B for one in fields]),
            torch.cat([one.fallback_B for one in fields]),
            fields[0].patch,
        )

    def each(self, change: Callable[[Tensor], Any]) -> MotionField:
        """Return the same motion with every tensor changed."""
        return MotionField(
            change(self.field_BThw2),
            change(self.speed_BThw),
            change(self.valid_BT),
            change(self.missing_B),
            change(self.fallback_B),
            self.patch,
        )

    def to(self, device: torch.device | str) -> MotionField:
        """Return the same motion on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def magnitude_BN(self, slices: int) -> Tensor:
        """Return the speed of each token, the mean over its frames: (B, N)."""
        B, T, h, w = self.speed_BThw.shape
        return self.speed_BThw.reshape(B, slices, T // slices, h * w).mean(2).reshape(B, -1)

    @property
    def moves_BTS2(self) -> Tensor:
        """The displacement into each frame from the one before, in tokens, x first, by site."""
        return self.field_BThw2.flatten(2, 3) / self.patch
