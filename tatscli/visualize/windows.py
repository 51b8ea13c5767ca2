"""A video as the windows that a model would see, with their motion.

Shapes: T frames of a window, F source frames, C channels, y and x stored cells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatscli.data.dataset import Sample
from tatscli.data.footage import FileFootage, Frame
from tatscli.data.motion import MotionField
from tatscli.data.motion_source import motion_seen, one_scale
from tatscli.data.sampling import drawn_clip, train_indices
from tatscli.data.tracks import FURTHEST, pieces, track
from tatscli.data.view import View, pretraining_view, spatial_crop
from tatscli.data.windows import Windows, read_chosen, ticks_of
from tatscli.errors import UsageError
from tatscli.recipe.schema import Data
from tatscli.seeding import random_of
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.video.frames import StoredFrame, read_frames

Phase = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Window:
    """The frames a model would see at once.

    Attributes:
        number: Counted from 0.
        frames: Their numbers in the source, in the order shown.
        times: Their presentation times in seconds.
        video_TCHW: uint8, the view of them.
        motion: Of this view, with a batch of one; a repeated frame stands still.
        follows: Whether it begins where the window before ended.
        more: Whether another window comes after it.
    """

    number: int
    frames: list[int]
    times: list[float]
    video_TCHW: Tensor
    motion: MotionField
    follows: bool = False
    more: bool = False

    @property
    def held(self) -> int:
        """How often the last frame is repeated at the end."""
        return sum(1 for _ in takewhile(lambda one: one == self.frames[-1], self.frames[-2::-1]))


def stored_window(store: Store, sample: Sample, frames: list[int]) -> Window:
    """Make a window of a view of a stored video, which has its motion, and of its frames."""
    assert sample.motion is not None
    return Window(
        number=0,
        frames=frames,
        times=store.times(sample.row)[frames].tolist(),
        video_TCHW=sample.video_CTHW.transpose(0, 1).contiguous(),
        motion=sample.motion,
    )


@dataclass(frozen=True, slots=True)
class WindowReader:
    """Which windows of a video are shown.

    As `test`, windows are those of `tats predict`: dense ones follow each other and the last one
    ends with the video, uniform ones span the whole video; all show the centre crop. As `train`,
    each window is a clip that pretraining draws, with its crop and flip: the one of epoch 0, 1, ...
    of the first video of a store.

    Attributes:
        data: The recipe's `data`: the shape of a window, how frames and crops are drawn, motion.
        phase: `train` or `test`.
        seed: Of the draws of `train`.
        prepared: How the store trained on was prepared: size of pictures, source, cells and camera
            of motion. None, where there is no store, scales pictures to the view.
    """

    data: Data
    phase: Phase = "test"
    seed: int = 0
    prepared: Settings | None = None

    @property
    def words(self) -> str:
        """What the header says of them."""
        sampling = self.data.sampling
        if sampling.mode == "uniform":
            pace = f"{self.data.frames} frames of the whole video"
        elif sampling.fps is not None:
            pace = f"{sampling.fps:g} frames a second"
        else:
            pace = f"stride {sampling.stride}"
        return f"{pace}, as in training" if self.phase == "train" else pace

    def read(self, path: Path, *, grid: tuple[int, int], count: int = 1) -> Iterator[Window]:
        """Yield the windows of a file, one at a time.

        Args:
            path: A file FFmpeg can read.
            grid: Token rows and columns that motion is averaged over.
            count: How many windows to draw as `train`, or to spread evenly where sampling is
                uniform; dense windows of `test` are as many as cover the video.

        Raises:
            DecodeError: The file does not open, holds no video, or not one frame of it decodes.
            DataError: The video is too short, or a window has no motion, and the recipe allows
                neither.
            UsageError: `data.motion` is precomputed flow, which a file of its own does not have.
        """
        if self.data.motion.source == "flow":
            raise UsageError(
                "`data.motion.source: flow` belongs to the videos of a store; a file has none",
                "`data.motion.source=codec` takes the motion vectors of the file",
            )
        data, prepared = self.data, self.prepared or Settings(short_side=max(self.data.view_size))
        footage = _MotionFootage(path, prepared)
        source = _Source(footage, data, prepared, data.view_size[0] // grid[0])
        windows = Windows(
            data.frames, data.view_size, data.sampling, antialias=data.antialias_labelled
        )
        if self.phase == "test" and data.sampling.mode == "dense":
            yield from _following(source, windows)
            return
        times = FileFootage(path).times()
        if self.phase == "test":
            chosen = windows.chosen(times, count)
        else:
            chosen = [self._drawn(times, epoch) for epoch in range(count)]
        footage.needed = {
            frame for frames in chosen for piece in pieces(frames, len(times)) for frame in piece
        }
        read = read_chosen(footage, chosen, prepared.short_side)
        for number, video_TCHW in enumerate(read):
            height, width = video_TCHW.shape[-2:]
            view = centre_view(height, width, data)
            if self.phase == "train":
                rng = random_of("view", self.seed, number, 0, 0)
                view = pretraining_view(height, width, data, rng)
            yield source.window(number, chosen[number], view, view.frames(video_TCHW))
            if number + 1 == len(chosen):
                return

    def _drawn(self, times: Sequence[float], epoch: int) -> list[int]:
        """Draw the frames that `PretrainClips` gives the first video of a store in an epoch."""
        data, rng = self.data, random_of("frames", self.seed, epoch, 0)
        clip = drawn_clip(data.sampling, rng)
        ticks = ticks_of(times, data.sampling)
        places = train_indices(len(ticks), data.sampling, data.frames, rng, clip)
        return [ticks[place] for place in places]


def centre_view(height: int, width: int, data: Data) -> View:
    """Return the view of evaluation: the centre crop."""
    return spatial_crop(
        height, width, data.view_size, crop=0, crops=1, antialias=data.antialias_labelled
    )


def _following(source: _Source, windows: Windows) -> Iterator[Window]:
    """Yield dense windows one after the other, while the file is read once."""
    footage, last = source.footage, -1
    for number, one in enumerate(windows.of(footage)):
        follows = number > 0 and one.span.frames[0] > last
        last = one.span.frames[-1]
        view = centre_view(footage.height, footage.width, source.data)
        video_TCHW = one.views_VCTHW[0].transpose(0, 1)
        window = source.window(number, one.span.frames, view, video_TCHW)
        yield replace(window, follows=follows, more=one.goes_on)
        # No later window begins before this one, or looks further back than that.
        footage.forget(before=min(one.span.frames) - FURTHEST)


class _Field(NamedTuple):
    """The motion into a source frame, be it one of a window or between two."""

    motion_yx2: np.ndarray
    valid: bool


class _MotionFootage(FileFootage):
    """A file that keeps the times of its frames and the motion into them.

    It reads one frame ahead: the motion of the frame after a window's last may fill that one's.

    Args:
        path: The file.
        prepared: Size of pictures; source, cells and camera of motion.

    Attributes:
        times_read: Presentation time of each frame read, in seconds.
        fields: Motion into frames read, by their number.
        needed: Frames whose motion is kept; None keeps all.
        height: Of the pictures, once one is read.
        width: Of the pictures.
    """

    def __init__(self, path: Path, prepared: Settings) -> None:
        super().__init__(path)
        self.prepared = prepared
        self.times_read: list[float] = []
        self.fields: dict[int, _Field] = {}
        self.needed: Collection[int] | None = None
        self.height = self.width = 0

    def frames(self, short_side: int | None) -> Iterator[Frame]:
        """Decode the file; pictures always have the size of the store's."""
        self.times_read, self.fields = [], {}
        before: Frame | None = None
        stored = read_frames(
            self.path,
            short_side=self.prepared.short_side,
            motion_cell=self.prepared.motion_cell,
            motion=self.prepared.motion,
            camera=self.prepared.camera,
        )
        for index, frame in enumerate(stored):
            self.height, self.width = frame.height, frame.width
            self.times_read.append(frame.time)
            if self.needed is None or index in self.needed:
                self.fields[index] = _Field(frame.motion, frame.valid)
            if before is not None:
                yield before
            before = Frame(frame.time, partial(_picture, frame))
        if before is not None:
            yield before

    def forget(self, *, before: int) -> None:
        """Drop the motion into frames before one."""
        self.fields = {index: field for index, field in self.fields.items() if index >= before}


@dataclass(frozen=True, slots=True)
class _Source:
    """Makes windows of the frames, times and motion of a footage."""

    footage: _MotionFootage
    data: Data
    prepared: Settings
    patch: int

    def window(self, number: int, frames: list[int], view: View, video_TCHW: Tensor) -> Window:
        """Make a window of its frames and their view, with the motion that `MotionSource` gives."""
        times = [self.footage.times_read[frame] for frame in frames]
        motion, found = self.data.motion, None
        if motion.source == "codec":
            needed = pieces(frames, len(self.footage.times_read))
            fields = [self.footage.fields[frame] for piece in needed for frame in piece]
            found = track(
                np.stack([one.motion_yx2 for one in fields]),
                np.array([one.valid for one in fields]),
                frames,
                needed,
                cell=self.prepared.motion_cell,
                robust=one_scale(motion, self.prepared),
                camera=motion.camera,
            )
        seen = motion_seen(
            view,
            video_TCHW,
            found,
            frames,
            cell=self.prepared.motion_cell,
            patch=self.patch,
            fallback=motion.fallback,
            name=str(self.footage.path),
        )
        return Window(number, frames, times, video_TCHW, seen)


def _picture(frame: StoredFrame) -> Tensor:
    return torch.from_numpy(frame.rgb())[None].permute(0, 3, 1, 2)
