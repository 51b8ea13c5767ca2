"""Videos of any length as windows: what a model sees at once, and when in the video that is.

A window is made of the frames that evaluation would sample, seen through its views. To the second
a video is read once, from its beginning, and never more than a window of it is in memory.

Shapes: V views of a window (crops), C channels, T frames, H and W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatscli.data.footage import Footage, Frame
from tatscli.data.sampling import TICK, eval_indices, shown_at_rate
from tatscli.data.view import spatial_crop
from tatscli.errors import DecodeError, UsageError
from tatscli.recipe.schema import Sampling


class Span(NamedTuple):
    """When a window is.

    Attributes:
        start: Seconds from the first frame of the video.
        end: Where the next frame would come.
        frames: The window's frames, by their number in the video.
    """

    start: float
    end: float
    frames: list[int]


class Window(NamedTuple):
    """What a model sees at once.

    Attributes:
        span: Which frames it has, and when it is.
        views_VCTHW: uint8.
        goes_on: Whether the video goes on after a window of those that follow each other.
    """

    span: Span
    views_VCTHW: Tensor
    goes_on: bool = False


class _Tick(NamedTuple):
    """A frame that the sampling takes."""

    frame: int
    time: float
    views_VCTHW: Tensor  # T = 1


class _Clock:
    """Passes frames on and remembers when the first came, and when one after the last would."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self.begin = self.end = 0.0
        self._frames = frames

    def __iter__(self) -> Iterator[Frame]:
        last: float | None = None
        for frame in self._frames:
            if last is None:
                self.begin = last = frame.time
            self.end, last = 2 * frame.time - last, frame.time
            yield frame


@dataclass(frozen=True, slots=True)
class Windows:
    """How videos are cut into windows.

    With neither `count` nor `every`, dense windows follow each other from the first frame on, and
    the last one ends with the video, however much it shares with the one before; uniform sampling
    makes one window of the whole video.

    Args:
        frames: Frames in a window T.
        size: Height and width of a view.
        sampling: How frames are drawn: evaluation's.
        crops: Views of a window, along the side that has room: 1 is the centre.
        count: So many windows, spread evenly as `evaluate.segments` does. A file is read twice: its
            frames are counted first.
        every: A new window every so many seconds; of dense sampling.
        antialias: Resize with antialiasing (`data.resize`).

    Raises:
        UsageError: If `count` and `every` exclude each other, or the sampling excludes `every`.
    """

    frames: int
    size: tuple[int, int]
    sampling: Sampling
    crops: int = 1
    count: int | None = None
    every: float | None = None
    antialias: bool = True

    def __post_init__(self) -> None:
        if self.count is not None and self.every is not None:
            raise UsageError("`--windows` and `--every` exclude each other")
        few = self.count is not None and self.count < 1
        if few or (self.every is not None and not self.every > 0):
            raise UsageError("`--windows` must be at least 1, and `--every` more than 0 seconds")
        if self.every is not None and self.sampling.mode == "uniform":
            raise UsageError(
                "`--every` is for dense sampling, and this run samples uniformly: a window is the "
                "whole video",
                hint="`--windows N` takes N windows, each with other frames of the whole video",
            )

    def of(self, footage: Footage) -> Iterator[Window]:
        """Yield the windows of a video, in the order of their times.

        Raises:
            DataError: The video cannot be read, or is too short under `short: error`.
        """
        if self.count is not None or self.sampling.mode == "uniform":
            yield from self._spread(footage, self.count or 1)
        else:
            yield from self._follow(footage)

    def _follow(self, footage: Footage) -> Iterator[Window]:
        """Read a video once; a window is the last T ticks whenever they are those of one."""
        held: deque[_Tick] = deque(maxlen=self.frames)
        open_starts: deque[int] = deque()  # ticks at which windows begin that are not full yet
        complete, count, place = False, 0, 0
        clock = _Clock(footage.frames(max(self.size)))
        for tick in self._ticks(clock):
            if complete:
                yield _window(held, clock.begin, tick.time, goes_on=True)
                complete = False
            held.append(tick)
            starts, place = self._starts(count, tick.time - clock.begin, place)
            if starts:
                open_starts.append(count)
            count += 1
            if open_starts and count - open_starts[0] == self.frames:
                open_starts.popleft()
                complete = True
        if count < self.frames and self.sampling.short != "repeat_last":
            yield from self._spread(footage, 1)  # which starts again, or refuses
        elif complete or open_starts:
            held.extend([held[-1]] * (self.frames - len(held)))
            yield _window(held, clock.begin, clock.end)

    def _starts(self, tick: int, since: float, place: int) -> tuple[bool, int]:
        """Tell whether a window begins at a tick, and how many multiples of `every` have passed."""
        if self.every is None:
            return tick % self.frames == 0, place
        passed = int(since / self.every + TICK) + 1
        return passed > place, max(place, passed)

    def _ticks(self, frames: Iterable[Frame]) -> Iterator[_Tick]:
        """Yield the frames that are on the stride, or on the screen as a clock ticks."""
        rate = self.sampling.fps
        if rate is None:
            stride = self.sampling.stride or 1
            for index, frame in enumerate(frames):
                if index % stride == 0:
                    yield _Tick(index, frame.time, self._views(frame.picture()))
            return
        # As `shown_at_rate`: a tick shows the last frame that has come by then.
        begin, ticks = 0.0, 0
        shown: tuple[int, Frame] | None = None
        for index, frame in enumerate(frames):
            if shown is None:
                begin = frame.time
            else:
                done = _ticks_before(frame.time, begin, rate, ticks)
                yield from self._held(*shown, begin, rate, range(ticks, done))
                ticks = done
            shown = index, frame
        if shown is not None:
            done = int((shown[1].time - begin) * rate + TICK) + 1
            yield from self._held(*shown, begin, rate, range(ticks, done))

    def _held(
        self, index: int, frame: Frame, begin: float, rate: float, ticks: range
    ) -> Iterator[_Tick]:
        """Yield a frame at every tick that shows it."""
        if ticks:
            views_VCTHW = self._views(frame.picture())
            yield from (_Tick(index, begin + one / rate, views_VCTHW) for one in ticks)

    def _spread(self, footage: Footage, count: int) -> Iterator[Window]:
        """Read a video once for its times and once for its windows' frames."""
        times = footage.times()
        chosen = self.chosen(times, count)
        pictures = read_chosen(footage, chosen, max(self.size))
        for frames, video_TCHW in zip(chosen, pictures, strict=True):
            yield Window(self._span(frames, times), self._views(video_TCHW))

    def chosen(self, times: Sequence[float], count: int) -> list[list[int]]:
        """Return the frames of `count` windows, evenly spread, given the times of all frames.

        Raises:
            DataError: The video is too short under `short: error`.
        """
        ticks = ticks_of(times, self.sampling)
        return [
            [ticks[place] for place in clip]
            for clip in eval_indices(len(ticks), self.sampling, self.frames, count)
        ]

    def _span(self, frames: list[int], times: list[float]) -> Span:
        """Tell when a window of chosen frames is: a uniform one is the whole video."""
        first, last = min(frames), max(frames)
        after = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)
        if self.sampling.mode == "uniform":
            return Span(0.0, after - times[0], frames)
        if self.sampling.fps is not None:
            end = min(times[last] + 1 / self.sampling.fps, after)
        else:
            beyond = last + (self.sampling.stride or 1)
            end = times[beyond] if beyond < len(times) else after
        return Span(times[first] - times[0], end - times[0], frames)

    def _views(self, video_TCHW: Tensor) -> Tensor:
        """Look at frames as evaluation does: (V, C, T, H, W)."""
        height, width = video_TCHW.shape[-2:]
        views = [
            spatial_crop(
                height, width, self.size, crop=crop, crops=self.crops, antialias=self.antialias
            )
            for crop in range(self.crops)
        ]
        return torch.stack([view.frames(video_TCHW).transpose(0, 1) for view in views])


def ticks_of(times: Sequence[float], sampling: Sampling) -> Sequence[int]:
    """Return the frames that a sampling counts: all, or the one on the screen at each tick."""
    if sampling.fps is None:
        return range(len(times))
    return shown_at_rate(np.array(times), sampling.fps)


def read_chosen(
    footage: Footage, chosen: Sequence[Sequence[int]], short_side: int | None
) -> Iterator[Tensor]:
    """Read a video once and yield the pictures of each window in turn: uint8 (T, C, H, W).

    A picture is held until the last window that needs it.

    Args:
        footage: The video.
        chosen: The frames of each window.
        short_side: As for `Footage.frames`.

    Raises:
        DecodeError: The video has fewer frames than were chosen from.
    """
    last_use = {frame: number for number, frames in enumerate(chosen) for frame in frames}
    kept: dict[int, Tensor] = {}
    number = 0
    for index, frame in enumerate(footage.frames(short_side)):
        if index in last_use:
            kept[index] = frame.picture()
        while number < len(chosen) and max(chosen[number]) <= index:
            yield torch.cat([kept[one] for one in chosen[number]])
            kept = {one: picture for one, picture in kept.items() if last_use[one] > number}
            number += 1
    if number < len(chosen):
        raise DecodeError(
            f"it had at least {max(chosen[number]) + 1} frames when it was first read, and fewer "
            "when it was read again"
        )


def _ticks_before(time: float, begin: float, rate: float, ticks: int) -> int:
    """Return how many ticks of a clock there are before a frame comes, at least `ticks`."""
    while begin + ticks / rate + TICK / rate < time:
        ticks += 1
    return ticks


def _window(held: deque[_Tick], begin: float, end: float, *, goes_on: bool = False) -> Window:
    ticks = list(held)
    span = Span(ticks[0].time - begin, end - begin, [tick.frame for tick in ticks])
    return Window(span, torch.cat([tick.views_VCTHW for tick in ticks], dim=2), goes_on)
