"""From stored bytes to what the network eats, on whatever device the video is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_unit(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels of any shape into float32 in [0, 1]."""
    return pixels.to(torch.float32).div_(255)


def standardized(video_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn a uint8 video into float32, minus the mean and divided by the deviation of each colour.

    Mean and deviation are those of values in [0, 1].
    """
    unit_BCTHW = to_unit(video_BCTHW)
    # Colour by colour with plain numbers: a tensor made of them would wait for the device.
    for colour_BTHW, level, spread in zip(unit_BCTHW.unbind(1), mean, std, strict=True):
        colour_BTHW.sub_(level).div_(spread)
    return unit_BCTHW
