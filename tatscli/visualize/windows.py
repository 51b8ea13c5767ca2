"""A video of any length as successive windows, decoded once and one at a time.

Shapes: T frames of a window, C channels, S side of the view, h and w token rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.data.view import spatial_crop
from tatscli.video.decode import StrPath
from tatscli.video.frames import StoredFrame, read_frames

_MOTION_CELL = 16


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
        motion: Of this view, with a batch of one; a repeated frame has none.
    """

    number: int
    frames: list[int]
    times: list[float]
    held: int
    video_TCHW: Tensor
    motion: MotionField


@dataclass(frozen=True, slots=True)
class _Seen:
    """One frame as a window needs it."""

    frame: int
    time: float
    picture_CHW: Tensor
    motion_hw2: Tensor
    valid: bool


def read_windows(
    path: StrPath, *, frames: int, stride: int, size: int, sites: tuple[int, int]
) -> Iterator[Window]:
    """Cover a video with windows of every `stride`-th frame, each following the last.

    Args:
        path: A file FFmpeg can read.
        frames: Frames in a window.
        stride: Source frames from one frame of a window to the next.
        size: Side of the view: the picture's short side is scaled to it, the middle is cut out.
        sites: Token rows and columns that motion is averaged over.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
    """
    seen: list[_Seen] = []
    number = 0
    for index, frame in enumerate(read_frames(path, short_side=size, motion_cell=_MOTION_CELL)):
        if index % (frames * stride) == 0:
            seen = []
        if index % stride == 0 and len(seen) < frames:
            seen.append(_view(index, frame, size, sites))
            if len(seen) == frames:
                yield _window(number, seen, held=0)
                number += 1
    if 0 < len(seen) < frames:
        still = replace(seen[-1], motion_hw2=torch.zeros_like(seen[-1].motion_hw2), valid=False)
        held = frames - len(seen)
        yield _window(number, seen + [still] * held, held=held)


def _view(index: int, frame: StoredFrame, size: int, sites: tuple[int, int]) -> _Seen:
    view = spatial_crop(frame.height, frame.width, size, crop=0, crops=1)
    picture_THWC = torch.from_numpy(frame.rgb())[None]
    motion_T = torch.from_numpy(frame.motion.copy())[None]
    return _Seen(
        index,
        frame.time,
        view.frames(picture_THWC.permute(0, 3, 1, 2))[0],
        view.motion(motion_T, cell=_MOTION_CELL, grid=sites)[0],
        frame.valid,
    )


def _window(number: int, seen: list[_Seen], *, held: int) -> Window:
    video_TCHW = torch.stack([one.picture_CHW for one in seen])
    field_BThw2 = torch.stack([one.motion_hw2 for one in seen])[None]
    valid_BT = torch.tensor([[one.valid for one in seen]])
    return Window(
        number,
        [one.frame for one in seen],
        [one.time for one in seen],
        held,
        video_TCHW,
        MotionField(
            field_BThw2,
            field_BThw2.norm(dim=-1),
            valid_BT,
            ~valid_BT.any(dim=1),
            video_TCHW.shape[-1] // field_BThw2.shape[3],
        ),
    )
