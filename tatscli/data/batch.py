"""`Batch`: what a training step is given, uint8 until the device.

Shapes: B views, C channels, T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tatscli.data.crops import Crops
from tatscli.data.files import Files
from tatscli.data.motion import MotionField
from tatscli.data.sample import Sample


@dataclass(frozen=True, slots=True)
class Batch:
    """Views of several videos, side by side; the views of one video are neighbours.

    Attributes:
        video_BCTHW: uint8 RGB; empty where `crops` or `files` stands for it, until the batch is
            brought to its device.
        motion: Motion on the token grid, where the dataset gives it.
        label_B: int64; -1 where there is none.
        row_B: int64, rows of the store's manifest.
        view_B: int64, number of the view among those of its video.
        codes: By the names of `store/codes.py`, codes that the store holds, int64 (B, t, h, w), and
            their scores, float32.
        bad: Unreadable videos, row and reason: one entry for every clip that was replaced or left
            out.
        crops: Views that the device has yet to resize.
        files: Files that the device has yet to decode.
    """

    video_BCTHW: Tensor
    motion: MotionField | None
    label_B: Tensor
    row_B: Tensor
    view_B: Tensor
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    bad: tuple[tuple[int, str], ...] = ()
    crops: Crops | None = None
    files: Files | None = None

    @property
    def replaced(self) -> int:
        """How often an unreadable video was replaced by its neighbour."""
        return len(self.bad)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on `device`, its video finished.

        Copies from pinned memory do not wait for the device.

        Raises:
            DataError: If a file cannot be decoded there.
        """

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        moved = replace(self, crops=None, files=None).each(move)
        if self.crops is not None:
            return replace(moved, video_BCTHW=self.crops.each(move).video())
        if self.files is not None:  # which the decoder wants on the host
            return replace(moved, video_BCTHW=self.files.video(torch.device(device)))
        return moved

    def pin_memory(self) -> Batch:
        """Return the same batch in pinned memory, from which copies to a GPU do not wait."""
        return self.each(torch.Tensor.pin_memory)

    def record_stream(self, stream: Any) -> None:
        """Tell the allocator that a CUDA stream uses the batch."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.each(record)

    def each(self, change: Callable[[Tensor], Any]) -> Batch:
        """Return the same batch with every tensor changed, always in the same order."""
        motion = self.motion
        if motion is not None:
            motion = motion.each(change)
        return replace(
            self,
            video_BCTHW=change(self.video_BCTHW),
            motion=motion,
            label_B=change(self.label_B),
            row_B=change(self.row_B),
            view_B=change(self.view_B),
            codes={name: change(one) for name, one in self.codes.items()},
            crops=None if self.crops is None else self.crops.each(change),
            files=None if self.files is None else self.files.each(change),
        )


def collate(samples: Sequence[Sample], bad: Sequence[tuple[int, str]] = ()) -> Batch:
    """Stack views into a batch; of no view it has no frames, and says what was bad."""
    if not samples:
        none = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0, dtype=torch.uint8), None, none, none, none, bad=tuple(bad))
    video_BCTHW, crops, files = torch.empty(0, dtype=torch.uint8), None, None
    undecoded = [(one.files, one.later) for one in samples if one.files and one.later]
    if undecoded:
        files = Files.pack(undecoded)
    elif any(sample.later is not None for sample in samples):
        clips = [sample.video_CTHW for sample in samples]
        crops = Crops.pack(clips, [sample.later for sample in samples])
    else:
        video_BCTHW = torch.stack([sample.video_CTHW for sample in samples]).contiguous()
    fields = [sample.motion for sample in samples if sample.motion is not None]
    return Batch(
        video_BCTHW=video_BCTHW,
        motion=MotionField.cat(fields) if fields else None,
        label_B=torch.tensor([sample.label for sample in samples]),
        row_B=torch.tensor([sample.row for sample in samples]),
        view_B=torch.tensor([sample.view for sample in samples]),
        codes={
            name: torch.stack([sample.codes[name] for sample in samples])
            for name in samples[0].codes
        },
        bad=tuple(bad),
        crops=crops,
        files=files,
    )


def blank_batch(
    views: int,
    *,
    frames: int,
    size: tuple[int, int],
    sites: tuple[int, int],
    patch: int,
    classes: int = 0,
) -> Batch:
    """Make clips of random pixels that stand still, for measuring and counting.

    Args:
        views: How many.
        frames: Of each.
        size: Height and width in pixels.
        sites: Token rows and columns, for the motion.
        patch: Height and width of a token in pixels.
        classes: The labels are drawn from so many; without any they are -1.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (views, 3, frames, *size), dtype=torch.uint8, generator=generator
    )
    unknown_B = torch.zeros(views, dtype=torch.bool)
    motion = MotionField(
        torch.zeros(views, frames, *sites, 2),
        torch.zeros(views, frames, *sites),
        torch.ones(views, frames, dtype=torch.bool),
        unknown_B,
        unknown_B,
        patch,
    )
    number_B = torch.arange(views)
    label_B = number_B % classes if classes else torch.full((views,), -1)
    return Batch(pixels, motion, label_B, number_B, torch.zeros_like(number_B))
