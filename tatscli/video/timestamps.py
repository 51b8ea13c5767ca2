"""Putting a few timestamps in order: which are wrong, and what they should have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_SAME = 0.01  # usual gaps; timestamps that are closer count as equal


class Arranged(NamedTuple):
    """Timestamps in order, as far as the first of them is concerned.

    Attributes:
        times: Seconds; the first is right, the others still have to be looked at.
        shift: Seconds that were added to all of them, since time had started again.
        kept: Whether the first is one of the file's own.
    """

    times: list[float | None]
    shift: float
    kept: bool


class _Rising(NamedTuple):
    """Timestamps that rise.

    Attributes:
        indices: Which they are.
        unevenness: Sum of squared gaps, frames between two of them being spread evenly.
    """

    indices: tuple[int, ...]
    unevenness: float


def rises(before: float, time: float, step: float) -> bool:
    """Whether a time is later than another, and not merely equal to it but for rounding."""
    return time - before > _SAME * step


def arranged(times: Sequence[float | None], before: float | None, step: float) -> Arranged:
    """Put the timestamps of successive frames in order.

    The most of them that rise are right. The others are wrong, unless all of them make an evener
    sequence once they are sorted. If hardly any continue after `before`, but most rise among
    themselves, time has started again.

    Args:
        times: By the file, in seconds; None where it has none.
        before: Time of the frame before them; None if there is none.
        step: The usual gap between two frames.
    """
    shift = 0.0
    right = _longest(times, before, step)
    if before is not None and 0 not in right.indices:
        alone = _longest(times, None, step).indices
        if len(alone) > max(1, 2 * len(right.indices)):
            shift = before + step * (alone[0] + 1) - (times[alone[0]] or 0.0)
            times = [None if time is None else time + shift for time in times]
            right = _longest(times, before, step)
    known = sorted(time for time in times if time is not None)
    if len(known) == len(times):
        ordered = _longest(known, before, step)
        wrong = 1 - len(right.indices) / len(times)
        limit = (1 + wrong) * right.unevenness  # the more are wrong, the likelier is another order
        if len(ordered.indices) == len(times) and ordered.unevenness < limit:
            return Arranged([*known], shift, True)
    if 0 in right.indices:
        return Arranged([*times], shift, True)
    if right.indices:
        index = right.indices[0]
        after = times[index] or 0.0
        gap = step if before is None else (after - before) / (index + 1)
        time = after - index * gap if before is None else before + gap
    else:
        time = 0.0 if before is None else before + step
    return Arranged([time, *times[1:]], shift, False)


def _longest(times: Sequence[float | None], before: float | None, step: float) -> _Rising:
    """Return the longest rising subsequence after `before`, of several the evenest."""
    found: list[_Rising | None] = []  # ending at each timestamp
    longest = _Rising((), 0.0)
    for index, time in enumerate(times):
        best: _Rising | None = None
        if time is not None and (before is None or rises(before, time, step)):
            start = 0.0 if before is None else (time - before) ** 2 / (index + 1)
            best = _Rising((index,), start)
            for other in found:
                if other is None:
                    continue
                last = other.indices[-1]
                gap = time - (times[last] or 0.0)
                if gap > _SAME * step:
                    uneven = other.unevenness + gap**2 / (index - last)
                    best = _better(best, _Rising((*other.indices, index), uneven))
            longest = _better(longest, best)
        found.append(best)
    return longest


def _better(one: _Rising, other: _Rising) -> _Rising:
    more = len(other.indices) - len(one.indices)
    return other if more > 0 or (more == 0 and other.unevenness < one.unevenness) else one
