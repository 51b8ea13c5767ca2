"""`Decoded`: a frame as a reader yields it, and how far away its references are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from av.video.frame import VideoFrame

_LONGEST_B_RUN = 64  # frames held until the anchor after them; no encoder makes as many


class Decoded(NamedTuple):
    """A decoded frame.

    Attributes:
        time: Presentation time in seconds, rising.
        frame: The picture, with the codec's vectors as side data where they are wanted.
        past: Frames since the picture its past vectors refer to; 1 where that is not known.
        future: Frames to the picture its future vectors refer to; 1 where that is not known.
        unusable: Why the codec's vectors cannot be used from this frame on, although the header
            looked as if they could; None while they can.
    """

    time: float
    frame: VideoFrame
    past: int = 1
    future: int = 1
    unusable: str | None = None


def with_distances(items: Iterable[tuple[Decoded, bool]]) -> Iterator[Decoded]:
    """Count how far away the references are, for codecs that refer to the nearest anchors alone.

    Args:
        items: Frames in the order of presentation, and whether each is no anchor: a B-frame, or
            one that is never referred to.
    """
    waiting: list[Decoded] = []
    for item, between in items:
        if between and len(waiting) < _LONGEST_B_RUN:
            waiting.append(item)
            continue
        yield from _between_anchors(waiting)
        yield Decoded(item.time, item.frame, len(waiting) + 1, 1, item.unusable)
        waiting.clear()
    yield from _between_anchors(waiting)


def _between_anchors(items: list[Decoded]) -> Iterator[Decoded]:
    for index, item in enumerate(items):
        yield Decoded(item.time, item.frame, index + 1, len(items) - index, item.unusable)


def distinct(frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Leave out a frame that is the one before again: the same memory, not only a picture like it.

    FFmpeg returns an MPEG-4 frame twice where B-frames begin that the header did not announce.
    """
    last: VideoFrame | None = None
    for frame in frames:
        if (
            last is None
            or frame.pts is None
            or frame.pts != last.pts
            or frame.planes[0].buffer_ptr != last.planes[0].buffer_ptr
        ):
            yield frame
        last = frame
