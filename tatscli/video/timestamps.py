"""Putting a few timestamps in order: which ones are wrong, and what they should have been."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

EQUAL = 1e-6  # seconds; timestamps that are closer are equal but for rounding
_MANY = 4  # timestamps that are not later than `before`; with fewer, they are wrong


class Arranged(NamedTuple):
    """Timestamps in order, as far as the first of them is concerned.

    Attributes:
        times: In seconds; the first is final, the others may still change.
        shift: Seconds that were added to all of them because time had started again.
        kept: Whether the first is one of the file's own timestamps.
    """

    times: list[float | None]
    shift: float
    kept: bool


class _Rising(NamedTuple):
    """Timestamps that rise.

    Attributes:
        indices: Their indices.
        unevenness: Sum of squared gaps, with the frames between two of them spread evenly.
    """

    indices: tuple[int, ...]
    unevenness: float


def is_later(time: float, before: float) -> bool:
    """Whether a time is later than another, not merely by rounding."""
    return time - before > EQUAL


def arranged(times: Sequence[float | None], before: float | None, step: float) -> Arranged:
    """Put the timestamps of successive frames in order.

    The longest rising subsequence is right and the rest is wrong, unless the gaps are more regular
    once all timestamps are sorted. If many are not later than `before`, but rise among themselves,
    time has started again.

    Args:
        times: The file's timestamps in seconds; None where it has none.
        before: Time of the frame before them; None if there is none.
        step: The usual gap between two frames.
    """
    if _rise(times, before):
        return Arranged([*times], 0.0, True)
    shift = 0.0
    right = _longest(times, before)
    if before is not None and 0 not in right.indices:
        alone = _longest(times, None)
        wrong = len(times) - len(right.indices)
        smooth = _rise(times, None) and alone.unevenness < 2 * len(times) * step**2
        if len(alone.indices) > max(1, 2 * len(right.indices)) or (smooth and wrong >= _MANY):
            index = alone.indices[0]
            shift = before + step * (index + 1) - (times[index] or 0.0)
            times = [None if time is None else time + shift for time in times]
            right = _longest(times, before)
    filled = _filled(times, right.indices, before, step)
    known = sorted(time for time in times if time is not None)
    if len(known) == len(times) and _rise(known, before):
        (sorted_odd, sorted_uneven), (odd, uneven) = (
            _irregularity(each, before) for each in (known, filled)
        )
        if sorted_odd < odd or (sorted_odd == odd and sorted_uneven < 1.01 * uneven):
            return Arranged([*known], shift, True)
    kept = 0 in right.indices
    return Arranged([*times] if kept else [filled[0], *times[1:]], shift, kept)


def _filled(
    times: Sequence[float | None], right: Sequence[int], before: float | None, step: float
) -> list[float]:
    """Replace all timestamps but the right ones by what lies evenly between those."""
    if not right:
        start = 0.0 if before is None else before + step
        return [start + index * step for index in range(len(times))]
    points = {index: times[index] or 0.0 for index in right}
    if before is None:
        before = points[right[0]] - (right[0] + 1) * step
    last, filled = -1, []
    for index, time in points.items():
        gap = (time - before) / (index - last)
        filled += [before + gap * count for count in range(1, index - last)] + [time]
        last, before = index, time
    return filled + [before + step * count for count in range(1, len(times) - last)]


def _irregularity(times: Sequence[float], before: float | None) -> tuple[int, float]:
    """Return how many gaps are not the usual one, and the sum of squared gaps."""
    gaps = [
        time - earlier for earlier, time in pairwise(times if before is None else [before, *times])
    ]
    usual = median(gaps) if gaps else 0.0
    return sum(abs(gap - usual) > usual / 4 for gap in gaps), sum(gap**2 for gap in gaps)


def _rise(times: Iterable[float | None], before: float | None) -> bool:
    for time in times:
        if time is None or (before is not None and not is_later(time, before)):
            return False
        before = time
    return True


def _longest(times: Sequence[float | None], before: float | None) -> _Rising:
    """Return the longest rising subsequence after `before`, of several the evenest."""
    found: list[_Rising | None] = []  # ending at each timestamp
    longest = _Rising((), 0.0)
    for index, time in enumerate(times):
        best: _Rising | None = None
        if time is not None and (before is None or is_later(time, before)):
            start = 0.0 if before is None else (time - before) ** 2 / (index + 1)
            best = _Rising((index,), start)
            for other in found:
                if other is None:
                    continue
                last = other.indices[-1]
                earlier = times[last] or 0.0
                if is_later(time, earlier):
                    gap = time - earlier
                    uneven = other.unevenness + gap**2 / (index - last)
                    best = _better(best, _Rising((*other.indices, index), uneven))
            longest = _better(longest, best)
        found.append(best)
    return longest


def _better(one: _Rising, other: _Rising) -> _Rising:
    more = len(other.indices) - len(one.indices)
    return other if more > 0 or (more == 0 and other.unevenness < one.unevenness) else one
