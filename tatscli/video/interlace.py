"""Deinterlacing with FFmpeg's `bwdif`: only the frames that need it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from av.video.frame import VideoFrame

from tatscli.video.decoded import Decoded
from tatscli.video.filters import filter_graph
from tatscli.video.picture import ONE_THREAD

_SMALLEST = 4  # pixels; `bwdif` takes no less
_COMB_STEP = 8  # grey levels between neighbouring lines
_COMB_ROWS = 3  # consecutive lines that alternate
_COMB_COLUMNS = 4  # only every fourth column is checked
_COMB_SHARE = 3e-4  # of the pixels checked


def deinterlaced(
    items: Iterable[Decoded], *, every: bool = False, guessed: bool = False, suspected: bool = False
) -> Iterator[tuple[Decoded, VideoFrame]]:
    """Yield each frame with its deinterlaced picture; a progressive frame with itself.

    Nothing is filtered before the first interlaced frame.

    Args:
        items: The frames, with the decoder's interlacing flags.
        every: Whether all frames are interlaced, whatever their flags.
        guessed: Whether some flags are guesses, as FFmpeg's are for H.264: it flags the first frame
            of soft telecine, and does not flag interlaced frames that are coded whole in a stream
            that also codes single fields (PAFF). Such frames are checked for combing.
        suspected: Whether unflagged frames are checked even before the first flagged one.
    """
    fields = _Fields(every=every, guessed=guessed, suspected=suspected)
    last: VideoFrame | None = None
    filter_: _Deinterlacer | None = None
    kind = None
    for item in items:
        frame = item.frame
        woven = fields.woven(frame)
        if kind != (frame.width, frame.height, frame.format.name):
            if filter_ is not None:
                yield from filter_.finish()
            kind = (frame.width, frame.height, frame.format.name)
            last = filter_ = None
        if filter_ is None and woven:
            filter_ = _Deinterlacer(frame, last, every=every or guessed)
        if filter_ is None:
            yield item, frame
        else:
            yield from filter_.take(item, woven=woven)
        last = frame
    if filter_ is not None:
        yield from filter_.finish()


class _Fields:
    """Tells which frames are woven from two fields."""

    def __init__(self, *, every: bool, guessed: bool, suspected: bool) -> None:
        self._every, self._guessed, self._suspected = every, guessed, suspected
        self._first = True

    def woven(self, frame: VideoFrame) -> bool:
        flagged = bool(frame.interlaced_frame)
        sure = self._every or (flagged and not (self._guessed and self._first))
        self._first = False
        woven = min(frame.width, frame.height) >= _SMALLEST and (
            sure or (self._guessed and (flagged or self._suspected) and is_combed(frame))
        )
        self._suspected |= woven
        return woven


class _Deinterlacer:
    """Frames inside `bwdif`, which returns each one once it has the next.

    Args:
        first: The first frame, for its size and format.
        before: The frame before it, if there is one: `bwdif` compares neighbours.
        every: Whether to filter all frames or only the flagged ones.
    """

    def __init__(self, first: VideoFrame, before: VideoFrame | None, *, every: bool) -> None:
        deint = "all" if every else "interlaced"
        self._graph = filter_graph(first, "bwdif", f"mode=send_frame:deint={deint}")
        self._waiting: deque[tuple[Decoded, bool] | None] = deque()
        if before is not None:
            self._waiting.append(None)
            self._graph.push(before)

    def take(self, item: Decoded, *, woven: bool) -> Iterator[tuple[Decoded, VideoFrame]]:
        self._waiting.append((item, woven))
        self._graph.push(item.frame)
        yield from self._ready()

    def finish(self) -> Iterator[tuple[Decoded, VideoFrame]]:
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[tuple[Decoded, VideoFrame]]:
        while self._waiting:
            try:
                picture = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            done = self._waiting.popleft()
            if done is not None:
                item, woven = done
                yield item, picture if woven else item.frame


def is_combed(frame: VideoFrame) -> bool:
    """Whether lines alternate, as where things move between the two fields of a frame."""
    whole = frame.reformat(format="gray", **ONE_THREAD).to_ndarray()
    gray = whole[:, ::_COMB_COLUMNS].astype(np.int16)
    up, down = gray[1:-1] - gray[:-2], gray[1:-1] - gray[2:]
    # Lines brighter than both neighbours, or darker than both, where the two are alike.
    apart = ((up > _COMB_STEP) & (down > _COMB_STEP)) | ((up < -_COMB_STEP) & (down < -_COMB_STEP))
    apart &= np.abs(up - down) < np.abs(up + down) // 4
    rows = len(apart) - _COMB_ROWS + 1
    comb = np.logical_and.reduce([apart[step : step + rows] for step in range(_COMB_ROWS)])
    return bool(rows > 0 and comb.mean() > _COMB_SHARE)
