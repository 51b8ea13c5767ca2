"""From stored bytes to what the network eats, on whatever device the video is on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_unit(video_BCTHW: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [0, 1]."""
    return video_BCTHW.to(torch.float32).div_(255)


def standardize(unit_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract the mean and divide by the deviation of each colour; both are in [0, 1]."""
    shape = (-1, 1, 1, 1)
    mean_C111 = unit_BCTHW.new_tensor(mean).view(shape)
    std_C111 = unit_BCTHW.new_tensor(std).view(shape)
    return (unit_BCTHW - mean_C111) / std_C111
