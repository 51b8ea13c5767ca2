"""Joining the two fields of interlaced pictures with FFmpeg's `bwdif`, frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame

from tatscli.video.reader import Decoded

_SMALLEST = 4  # pixels; `bwdif` takes no less


def deinterlaced(items: Iterable[Decoded]) -> Iterator[tuple[Decoded, VideoFrame]]:
    """Yield each frame with its picture; progressive pictures pass through unchanged."""
    waiting: deque[Decoded] = deque()
    graph, kind = None, None
    for item in items:
        frame = item.frame
        if min(frame.width, frame.height) < _SMALLEST:
            yield item, frame
            continue
        if kind != (frame.width, frame.height, frame.format.name):
            if graph is not None:
                graph.push(None)
                yield from _ready(graph, waiting)
            kind = (frame.width, frame.height, frame.format.name)
            graph = _graph(frame)
        assert graph is not None
        waiting.append(item)
        graph.push(frame)
        yield from _ready(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _ready(graph, waiting)


def _ready(graph: Graph, waiting: deque[Decoded]) -> Iterator[tuple[Decoded, VideoFrame]]:
    while waiting:
        try:
            picture = graph.vpull()
        except (BlockingIOError, EOFError):
            return
        yield waiting.popleft(), picture


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    filter_ = graph.add("bwdif", "mode=send_frame:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(filter_)
    filter_.link_to(sink)
    graph.configure()
    return graph
