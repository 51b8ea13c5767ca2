"""`Clock`: presentation times that rise, from timestamps that may be missing, wrong or shuffled.

Decoders return frames in the order they are shown, so timestamps that do not rise are wrong. Those
that rise are trusted, however uneven: variable frame rates and dropped frames look like that. Only
the following frames tell whether one timestamp is wrong or time has started again, so frames are
held back where a gap is not the usual one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from statistics import median
from typing import TypeVar

from tatscli.video.timestamps import EQUAL, arranged

Frame = TypeVar("Frame")

_AHEAD = 16  # frames looked at, at most
_USUAL = 1.5  # usual gaps; what is longer may be a wrong timestamp
_ENOUGH_GAPS = 3  # with fewer of them the header's frame rate counts
_LATEST = 1e10  # seconds; cameras count from 1970, damaged clocks from anywhere
_FAR = 10.0  # seconds from all others at which a single frame is not believed


class Clock:
    """Adds presentation times to the decoded frames of one pass.

    - A timestamp that is missing, equal to another or out of order is replaced by one between its
      neighbours. Later ones stay as they are.
    - If time starts again at an earlier point, as in joined recordings and where a counter wraps,
      the new part follows the old one at the usual gap.
    - Timestamps in decoding order are sorted.
    - A first or last frame far away from all others, which are evenly spaced, is moved next to
      them.

    Args:
        step: Seconds between two frames by the header.

    Attributes:
        replaced: Number of wrong timestamps so far; missing ones do not count.
        moved: Seconds by which the first frame was moved.
    """

    def __init__(self, step: float) -> None:
        self.replaced = 0
        self.moved = 0.0
        self._step = step
        self._longest_usual = _USUAL * step
        self._gaps: deque[float] = deque(maxlen=_AHEAD - 1)
        self._offset = 0.0  # of a part whose time has started again
        self._count = 0
        self._first = 0.0
        self._last: float | None = None
        self._missing = False  # whether the last frame had no timestamp
        self._example = ""

    @property
    def problem(self) -> str | None:
        """What was wrong, for the manifest; None if nothing was."""
        if not self.replaced:
            return None
        many = "s were" if self.replaced > 1 else " was"
        return f"{self.replaced} timestamp{many} wrong and replaced ({self._example})"

    def __call__(
        self, frames: Iterable[tuple[float | None, Frame]]
    ) -> Iterator[tuple[float, Frame]]:
        """Yield each frame with its time in seconds.

        Args:
            frames: In the order of presentation, with the file's timestamps in seconds.
        """
        waiting: deque[Frame] = deque()
        times: list[float | None] = []
        for time, frame in frames:
            last = self._last
            if time is not None and last is not None and not waiting:  # nearly every frame
                gap = time + self._offset - last
                if EQUAL < gap <= self._longest_usual:
                    self._last = last = time + self._offset
                    self._count += 1
                    self._missing = False
                    self._learn(gap)
                    yield last, frame
                    continue
            damaged = time is None or not abs(time) < _LATEST
            times.append(None if time is None or damaged else time + self._offset)
            waiting.append(frame)
            while waiting and (self._is_usual(times) or len(waiting) == _AHEAD):
                yield self._take(times, ended=False), waiting.popleft()
        while waiting:
            yield self._take(times, ended=True), waiting.popleft()

    def _is_usual(self, times: list[float | None]) -> bool:
        """Whether the first of these times is right without a look at the others."""
        time, before = times[0], self._last
        if time is None:
            return self._missing  # as in a raw stream
        if before is None:
            if len(times) < 2 or times[1] is None:
                return False
            time, before = times[1], time
        return EQUAL < time - before <= self._longest_usual

    def _take(self, times: list[float | None], *, ended: bool) -> float:
        """Remove the first of these times, and return what it has to be."""
        by_file, kept = times[0], True
        if not self._is_usual(times):
            times[:], shift, kept = arranged(times, self._last, self._step)
            self._offset += shift
            if kept and (stray := self._stray(times, ended)) is not None:
                times[0], kept = stray, False
        time = times.pop(0)
        if time is None:  # one of many without timestamps
            time, kept = (self._last or 0.0) + self._step, False
        if self._last is None:
            self._first = time
        elif kept:
            self._learn(time - self._last)
        self._missing = by_file is None
        if by_file is not None and not kept:
            self.replaced += 1
            self._example = self._example or (
                f"frame {self._count}: {by_file:.6g} s became {time:.6g} s"
            )
            if self._last is None:
                self.moved = time - by_file
        self._count += 1
        self._last = time
        return time

    def _learn(self, gap: float) -> None:
        """Follow the usual gap."""
        self._gaps.append(gap)
        if abs(gap - self._step) > 1e-3 * self._step and len(self._gaps) >= _ENOUGH_GAPS:
            self._step = median(self._gaps)
            self._longest_usual = _USUAL * self._step

    def _stray(self, times: list[float | None], ended: bool) -> float | None:
        """Return what the first time should be if it is far from all others; None if it is not."""
        time = times[0] or 0.0
        if self._last is None:
            known = [each for each in times if each is not None]
            gaps = [later - each for each, later in pairwise(known)]
            if len(gaps) < _AHEAD - 1 or gaps[0] < _FAR:
                return None
            step = median(gaps[1:])
            even = _is_even(gaps[1:], step)
            return known[1] - step if even else None
        gap = time - self._last
        if not ended or len(times) > 1 or gap < max(_FAR, self._last - self._first):
            return None
        enough = len(self._gaps) == self._gaps.maxlen and _is_even(self._gaps, self._step)
        return self._last + self._step if enough else None


def _is_even(gaps: Iterable[float], step: float) -> bool:
    return all(0 < gap <= _USUAL * step for gap in gaps)
