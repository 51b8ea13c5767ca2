"""Which segments of a video are read together, in one pass over its frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tatscli.store.sources import Source
from tatscli.video.decode import Segment

_GAP = 10.0  # seconds between two segments; jumping over more is cheaper than decoding them
_SPAN = 120.0  # seconds of video in one pass, so that a long video is shared among workers
_AT_ONCE = 64  # segments at one place of the video, each of which has two files open


def in_passes(sources: Sequence[Source]) -> list[list[Source]]:
    """Return sources in the order in which they are collected, those of one pass together.

    Files come in the order of their names, segments of a file in that of their starts. Segments in
    frames, which are counted from the beginning of a video, have each a pass of their own.
    """
    passes: list[list[Source]] = []
    for _, of_file in groupby(sorted(sources, key=_order), key=lambda source: source.file):
        ends: list[float] = []  # of the segments of the present pass
        begin = 0.0
        for source in of_file:
            segment = source.segment
            if segment is None or segment.unit != "seconds":
                passes.append([source])
                ends = []
                continue
            if ends and _fits(segment, begin, ends):
                passes[-1].append(source)
            else:
                passes.append([source])
                begin, ends = segment.start, []
            ends.append(float("inf") if segment.end is None else segment.end)
    return passes


def _order(source: Source) -> tuple[str, str, float, float, str]:
    if source.segment is None:
        return source.file, "", 0.0, 0.0, source.id
    start, end, unit = source.segment.start, source.segment.end, source.segment.unit
    return source.file, unit, start, float("inf") if end is None else end, source.id


def _fits(segment: Segment, begin: float, ends: Sequence[float]) -> bool:
    """Whether a pass that began at a time and has segments with these ends takes another one."""
    at_once = sum(end > segment.start for end in ends)
    near = segment.start <= max(ends) + _GAP and segment.start <= begin + _SPAN
    return near and at_once < _AT_ONCE
