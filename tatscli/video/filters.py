"""FFmpeg's filters, for frames of one size and format."""

from __future__ import annotations

from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame


def filter_graph(frame: VideoFrame, name: str, options: str) -> Graph:
    """Return a graph of one filter, on one thread, for frames like this one.

    Args:
        frame: Gives size, format and time base.
        name: Of the filter.
        options: As FFmpeg writes them.
    """
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 25),
    )
    one = graph.add(name, options)
    sink = graph.add("buffersink")
    source.link_to(one)
    one.link_to(sink)
    graph.configure()
    return graph
