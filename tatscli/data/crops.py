"""Views that are finished on the device: crops travel as they were cut, and are resized there.

What is left to do of a view is to resize and to mirror it. Crops of one size are resized together.
Shapes: B views, C channels, T frames, H and W pixels of the view, h and w of the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tatscli.data.view import View

_TOGETHER = 8  # clips resized at once: in float32 they take four times the bytes


@dataclass(frozen=True, slots=True)
class Crops:
    """Clips of different sizes in one buffer, and what is left to do of each.

    Attributes:
        pixels: uint8, one clip after the other, each (T, h, w, C).
        shapes: (T, h, w) of each.
        views: The view of each; None where nothing is left to do.
        size: Height and width of all views.
    """

    pixels: Tensor
    shapes: tuple[tuple[int, int, int], ...]
    views: tuple[View | None, ...]
    size: tuple[int, int]

    @classmethod
    def pack(cls, clips_CThw: Sequence[Tensor], views: Sequence[View | None]) -> Crops:
        """Lay clips into one buffer."""
        pixels = torch.empty(sum(clip.numel() for clip in clips_CThw), dtype=torch.uint8)
        shapes = [(clip.shape[1], clip.shape[2], clip.shape[3]) for clip in clips_CThw]
        for place, clip_CThw in zip(_split(pixels, shapes), clips_CThw, strict=True):
            place.copy_(clip_CThw.permute(1, 2, 3, 0))
        sizes = {
            shape[1:] if view is None else view.size
            for shape, view in zip(shapes, views, strict=True)
        }
        (size,) = sizes
        return cls(pixels, tuple(shapes), tuple(views), size)

    def each(self, change: Callable[[Tensor], Any]) -> Crops:
        """Return the same crops with their buffer changed."""
        return replace(self, pixels=change(self.pixels))

    def video(self) -> Tensor:
        """Return the views, where the buffer is: uint8 (B, C, T, H, W)."""
        clips = [clip.permute(0, 3, 1, 2) for clip in _split(self.pixels, self.shapes)]
        return finished(clips, self.views, self.size)


def finished(
    clips_TChw: Sequence[Tensor], views: Sequence[View | None], size: tuple[int, int]
) -> Tensor:
    """Resize and mirror crops as their views say: uint8 (B, C, T, H, W).

    What `View.frames` makes of them, to one grey level: that one rounds its weights, this one
    computes in float32, which GPUs have a kernel for.

    Args:
        clips_TChw: uint8, all of as many frames, on one device.
        views: The view of each; None where nothing is left to do.
        size: Height and width of all views.
    """
    T, C = clips_TChw[0].shape[:2]
    video_BCTHW = clips_TChw[0].new_empty(len(clips_TChw), C, T, *size)
    alike: dict[tuple[int, int, bool], list[int]] = {}
    for number, (clip_TChw, view) in enumerate(zip(clips_TChw, views, strict=True)):
        antialias = view is not None and view.antialias
        height, width = clip_TChw.shape[2:]
        alike.setdefault((height, width, antialias), []).append(number)
    for (height, width, antialias), members in alike.items():
        for first in range(0, len(members), _TOGETHER):
            numbers = members[first : first + _TOGETHER]
            made_XCHW = torch.cat([clips_TChw[number] for number in numbers])
            if (height, width) != size:
                made_XCHW = functional.interpolate(
                    made_XCHW.float(), size, mode="bilinear", antialias=antialias
                )
                made_XCHW = made_XCHW.round_().clamp_(0, 255).to(torch.uint8)
            for number, clip_TCHW in zip(numbers, made_XCHW.split(T), strict=True):
                view = views[number]
                flip = view is not None and view.flip
                clip_CTHW = clip_TCHW.transpose(0, 1)
                video_BCTHW[number] = clip_CTHW.flip(-1) if flip else clip_CTHW
    return video_BCTHW


def _split(pixels: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Return the clips in a buffer, each (T, h, w, C)."""
    sizes = [frames * height * width * 3 for frames, height, width in shapes]
    parts = pixels.split(sizes)
    return [part.view(*shape, 3) for part, shape in zip(parts, shapes, strict=True)]
