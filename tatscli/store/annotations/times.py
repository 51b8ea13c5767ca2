"""Segments as annotations write them: seconds, or hours, minutes and seconds."""

from __future__ import annotations

import re

from tatscli.errors import DataError
from tatscli.video.decode import Segment

_CLOCK = re.compile(r"(?:(?:(\d{1,9}):)?(\d{1,9}):)?(\d{1,9}(?:\.\d*)?|\.\d+)", re.ASCII)


def read_segment(start: str, end: str, where: str) -> Segment | None:
    """Read a segment; None where neither time is given.

    Raises:
        DataError: A time is not one, or the segment is empty.
    """
    if not start and not end:
        return None
    first = _seconds(start, where) if start else 0.0
    last = _seconds(end, where) if end else None
    if last is not None and last <= first:
        raise DataError(
            f"{where}: the segment ends at `{end}`, not after its start `{start or 0}`",
            "times are seconds, or HH:MM:SS.ss, from the beginning of the video",
        )
    return Segment(first, last)


def write_seconds(seconds: float) -> str:
    """Return a time as text, to the microsecond, without needless zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def segment_name(segment: Segment) -> str:
    """Name a segment after its times, where nothing else does."""
    end = "" if segment.end is None else write_seconds(segment.end)
    return f"{write_seconds(segment.start)}-{end}"


def _seconds(text: str, where: str) -> float:
    found = _CLOCK.fullmatch(text)
    if found is None:
        raise DataError(
            f"{where}: `{text}` is not a time", "write seconds, such as 12.5, or HH:MM:SS.ss"
        )
    hours, minutes, seconds = found.groups()
    return round(3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds), 6)
