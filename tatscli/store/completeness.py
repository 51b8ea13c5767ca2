"""How many of a video's frames there should be, and how many are missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tatscli.errors import DecodeError
from tatscli.video.decode import Segment
from tatscli.video.reader import VideoReader

_ENOUGH = 0.8  # of the frames, where nothing went wrong: headers are often off by some
_PLAIN = 1.5  # steps; a segment that reaches beyond the last frame by less ends with the video


def completeness(
    reader: VideoReader, times: Sequence[float], segment: Segment | None, min_share: float
) -> str | None:
    """Say how many frames are missing, if some do not decode or more than headers are wrong by.

    Args:
        reader: What has read the video, or the segment, to its end.
        times: Of the frames in seconds.
        segment: The part of the file that was asked for; None is all of it.
        min_share: The share of the frames that have to be there.

    Raises:
        DecodeError: Fewer are there.
    """
    found = _expected(reader, times, segment)
    if found is None:
        return None
    share, expected = found
    if len(times) >= expected or (share >= _ENOUGH and not reader.damaged):
        return None
    text = f"{len(times)} of {expected} frames"
    if segment is not None and reader.cut:
        text += f": the video ends at {times[-1] + _step(reader, times) - reader.begin:.2f} s"
    if share < min_share:
        reasons = "; ".join(filter(None, [f"only {text}", reader.problem]))
        raise DecodeError(f"{reasons}; `--min-share` is {min_share:g}")
    return text


def _expected(
    reader: VideoReader, times: Sequence[float], segment: Segment | None
) -> tuple[float, int] | None:
    """Return the share of frames that are there, and how many there should be; None if unknown.

    A header may count frames that players do not show, or tell the length of another stream: where
    nothing went wrong in decoding, the kinder of two hints counts, else the harder one.
    """
    if segment is not None:
        return _expected_of_segment(reader, times, segment)
    step, hints = _step(reader, times), []
    if reader.announced > 0:
        hints.append((len(times) / reader.announced, reader.announced))
    if reader.length is not None:
        share = (times[-1] - times[0] + step) / reader.length
        usual = float(np.median(np.diff(times))) if len(times) > 1 else step
        hints.append((share, reader.announced or round(reader.length / usual)))
    if not hints:
        return None
    return min(hints) if reader.damaged else max(hints)


def _expected_of_segment(
    reader: VideoReader, times: Sequence[float], segment: Segment
) -> tuple[float, int] | None:
    if segment.end is None or not (reader.cut or reader.damaged):
        return None  # the frames up to its end are there, however far apart
    asked = segment.end - segment.start
    if segment.unit == "frames":
        return len(times) / asked, round(asked)
    # Where frames are missing in between, they are further apart than they were.
    step = reader.step if reader.damaged else _step(reader, times)
    if len(times) * step > asked - _PLAIN * step:
        return None
    return len(times) * step / asked, max(round(asked / step), len(times) + 1)


def _step(reader: VideoReader, times: Sequence[float]) -> float:
    """Return the seconds between two frames."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else reader.step
