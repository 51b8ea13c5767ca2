"""A video of any length as successive windows, decoded once and one at a time.

Shapes: T frames of a window, F source frames, C channels, y and x stored cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatscli.data.dataset import Sample
from tatscli.data.motion import MotionField
from tatscli.data.motion_source import motion_seen, one_scale
from tatscli.data.tracks import reach, track
from tatscli.data.view import View, spatial_crop
from tatscli.errors import UsageError
from tatscli.recipe.schema import Motion
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.video.decode import StrPath
from tatscli.video.frames import read_frames

_CODEC = Motion()
_PREPARED = Settings()


@dataclass(frozen=True, slots=True)
class Window:
    """The frames a model would see at once.

    Attributes:
        number: Counted from 0.
        frames: Source frames, ascending; where the video ends early the last one repeats, as
            `short: repeat_last` does in training.
        times: Their presentation times in seconds.
        held: How many frames are such repeats.
        video_TCHW: uint8, the centre crop that evaluation uses.
        motion: Of this view, with a batch of one; a repeated frame stands still.
        more: Whether another window follows.
    """

    number: int
    frames: list[int]
    times: list[float]
    held: int
    video_TCHW: Tensor
    motion: MotionField
    more: bool = False


def stored_window(store: Store, sample: Sample, frames: list[int]) -> Window:
    """Make a window of a view of a stored video, which has its motion, and of its frames."""
    assert sample.motion is not None
    return Window(
        number=0,
        frames=frames,
        times=store.times(sample.row)[frames].tolist(),
        held=len(frames) - len(set(frames)),
        video_TCHW=sample.video_CTHW.transpose(0, 1).contiguous(),
        motion=sample.motion,
    )


class _Seen(NamedTuple):
    """One frame as a window needs it."""

    frame: int
    time: float
    view: View
    picture_CHW: Tensor


class _Field(NamedTuple):
    """The motion into a source frame, be it one of the window or between two."""

    motion_yx2: np.ndarray
    valid: bool


def read_windows(
    path: StrPath,
    *,
    frames: int,
    stride: int,
    size: tuple[int, int],
    sites: tuple[int, int],
    motion: Motion = _CODEC,
    prepared: Settings = _PREPARED,
) -> Iterator[Window]:
    """Cover a video with windows of every `stride`-th frame, each following the last.

    Args:
        path: A file FFmpeg can read.
        frames: Frames in a window.
        stride: Source frames from one frame of a window to the next.
        size: Height and width of the view: the largest crop of that aspect in the middle.
        sites: Token rows and columns that motion is averaged over.
        motion: The recipe's `data.motion`: a window's motion is made as that of a training clip.
        prepared: Of the store trained on: whose vectors, on cells of which size, with what camera.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
        DataError: A window has no motion, and `motion` allows no fallback.
        UsageError: `motion` is flow made elsewhere, which a file of its own does not have.
    """
    if motion.source == "flow":
        raise UsageError(
            "`data.motion.source: flow` belongs to the videos of a store; a file has none",
            "`data.motion.source=codec` takes the vectors of the file",
        )
    seen: list[_Seen] = []
    fields: list[_Field] = []
    number = first = 0  # `fields` begin with source frame `first`

    def window(*, more: bool) -> Window:
        field_Fyx2 = np.stack([one.motion_yx2 for one in fields])
        valid_F = np.array([one.valid for one in fields])
        shown = seen + seen[-1:] * (frames - len(seen))
        return Window(
            number,
            [one.frame for one in shown],
            [one.time for one in shown],
            frames - len(seen),
            torch.stack([one.picture_CHW for one in shown]),
            _motion(path, shown, field_Fyx2, valid_F, first, size[0] // sites[0], motion, prepared),
            more,
        )

    stored = read_frames(
        path,
        short_side=max(size),  # whatever the picture's aspect, the crop is no smaller than the view
        motion_cell=prepared.motion_cell,
        motion=prepared.motion,
        camera=prepared.camera,
    )
    for index, frame in enumerate(stored):
        fields.append(_Field(frame.motion, frame.valid))  # the one after a window may fill its last
        if index % stride == 0:
            if len(seen) == frames:
                yield window(more=True)
                number, seen = number + 1, []
            if not seen:  # the way into the first frame began a stride ago
                skip = max(index - stride + 1 - first, 0)
                fields, first = fields[skip:], first + skip
            view = spatial_crop(frame.height, frame.width, size, crop=0, crops=1)
            picture_1CHW = torch.from_numpy(frame.rgb())[None].permute(0, 3, 1, 2)
            seen.append(_Seen(index, frame.time, view, view.frames(picture_1CHW)[0]))
    if seen:
        yield window(more=False)


def _motion(
    path: StrPath,
    shown: list[_Seen],
    field_Fyx2: np.ndarray,
    valid_F: np.ndarray,
    first: int,
    patch: int,
    motion: Motion,
    prepared: Settings,
) -> MotionField:
    """Make the motion of a window of the fields from `first` on, as `MotionSource` does."""
    frames = [one.frame for one in shown]
    found = None
    if motion.source == "codec":
        wanted = reach(frames, first + len(valid_F))
        part = slice(wanted.start - first, wanted.stop - first)
        found = track(
            field_Fyx2[part],
            valid_F[part],
            frames,
            wanted.start,
            cell=prepared.motion_cell,
            robust=one_scale(motion, prepared),
            camera=motion.camera,
        )
    video_TCHW = torch.stack([one.picture_CHW for one in shown])
    return motion_seen(
        shown[0].view,
        video_TCHW,
        found,
        frames,
        cell=prepared.motion_cell,
        patch=patch,
        fallback=motion.fallback,
        name=str(path),
    )
