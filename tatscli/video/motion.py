"""`read_vectors`: every motion vector of a file as FFmpeg exports it, at parsing speed.

Vectors do not depend on pixels: skipping the loop filter and the inverse transform corrupts the
pictures, saves a third of the time and changes no vector. One thread, since FFmpeg's frame threads
lose vectors of reference frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import PictureType, VideoFrame

from tatscli.video.decode import StrPath
from tatscli.video.reader import VideoReader

COLUMNS = (
    "source",
    "w",
    "h",
    "src_x",
    "src_y",
    "dst_x",
    "dst_y",
    "motion_x",
    "motion_y",
    "motion_scale",
)
"""Columns of the rows, named as in FFmpeg (`libavutil/motion_vector.h`).

`source` is -1 for a past and 1 for a future reference (Snow: -n for the n-th reference back); `w`
and `h` are the block's size in pixels, `dst_x` and `dst_y` its centre, `src_x` and `src_y` the
centre of the reference block, rounded to whole pixels; `motion_x / motion_scale` is the exact
displacement from block to reference.
"""

_STRUCT = np.dtype(
    [
        ("source", "<i4"),
        ("w", "u1"),
        ("h", "u1"),
        ("src_x", "<i2"),
        ("src_y", "<i2"),
        ("dst_x", "<i2"),
        ("dst_y", "<i2"),
        ("flags", "<u8"),
        ("motion_x", "<i4"),
        ("motion_y", "<i4"),
        ("motion_scale", "<u2"),
    ],
    align=True,
)
"""FFmpeg's `AVMotionVector` in memory: 40 bytes."""


class FrameVectors(NamedTuple):
    """The vectors of one frame.

    Attributes:
        rows: (R, 10) int32, with `COLUMNS`; no rows for frames without vectors.
        type: `I`, `P`, `B` or another of FFmpeg's letters for picture types.
        time: Presentation time in seconds.
    """

    rows: np.ndarray
    type: str
    time: float


def read_vectors(path: StrPath) -> Iterator[FrameVectors]:
    """Yield the vectors of every frame in presentation order.

    Raises:
        DecodeError: The file does not open, holds no video, or no frame of it can be decoded.
    """
    return vectors_of(VideoReader(path, motion="native", pictures=False))


def vectors_of(reader: VideoReader) -> Iterator[FrameVectors]:
    """Yield what `read_vectors` does, from a reader that the caller keeps."""
    for time, frame, *_ in reader:
        yield FrameVectors(rows(exported(frame)), picture_type(frame), time)


def exported(frame: VideoFrame) -> np.ndarray:
    """Return FFmpeg's rows for a decoded frame as a structured array; empty if there are none."""
    # Not `frame.side_data`: frame and container would form a reference cycle, and allocating memory
    # for every frame anew costs a fifth of the decoding time.
    vectors: Any = SideDataContainer(frame).get("MOTION_VECTORS")  # type: ignore[call-arg]
    return np.frombuffer(b"" if vectors is None else vectors, _STRUCT)


def rows(vectors: np.ndarray) -> np.ndarray:
    """Return FFmpeg's rows as (R, 10) int32 with `COLUMNS`."""
    result = np.empty((len(vectors), len(COLUMNS)), np.int32)
    for index, name in enumerate(COLUMNS):  # faster than numpy's own conversion
        result[:, index] = vectors[name]
    return result


def picture_type(frame: VideoFrame) -> str:
    """Return FFmpeg's letter for how a frame was coded."""
    return PictureType(frame.pict_type).name[-1]
