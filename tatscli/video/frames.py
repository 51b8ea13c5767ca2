"""`read_frames`: one decode gives stored pictures and their motion, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from tatscli.video.decode import StrPath, VideoReader
from tatscli.video.encode import encode_jpeg
from tatscli.video.motion import grid_size, rasterise
from tatscli.video.picture import Scaler, stored_size, to_rgb


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrame:
    """One frame as a store holds it: upright, scaled, with the motion that leads to it.

    Attributes:
        time: Presentation time in seconds.
        picture: The scaled picture in YUV.
        motion: (gh, gw, 2) float32, displacement of content in pixels of this picture, x first; 0
            where unknown.
        valid: Whether the codec gave vectors for this frame; key frames have none.
    """

    time: float
    picture: VideoFrame
    motion: np.ndarray
    valid: bool

    @property
    def width(self) -> int:
        return self.picture.width

    @property
    def height(self) -> int:
        return self.picture.height

    def rgb(self) -> np.ndarray:
        """Return the picture as (H, W, 3) uint8."""
        return to_rgb(self.picture)

    def jpeg(self, quality: int = 3) -> bytes:
        """Return the picture as a JPEG file; `quality` is FFmpeg's scale, 2 (best) to 31."""
        return encode_jpeg(self.picture, quality)


def read_frames(
    path: StrPath, *, short_side: int | None = 256, motion_cell: int = 16
) -> Iterator[StoredFrame]:
    """Decode a file once and yield every frame; leave the loop whenever you like.

    Args:
        path: A file FFmpeg can read.
        short_side: Larger pictures are scaled down to it, smaller ones stay; None keeps the size.
        motion_cell: Side of a cell of the motion field, in pixels of the stored picture.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
    """
    return stored_frames(VideoReader(path), short_side=short_side, motion_cell=motion_cell)


def stored_frames(
    reader: VideoReader, *, short_side: int | None, motion_cell: int
) -> Iterator[StoredFrame]:
    """Yield the frames of a reader as `read_frames` does; the reader keeps what it learns.

    The first frame decides the stored size: frames of another size, should the stream change, are
    scaled to it.
    """
    scale: Scaler | None = None
    for time, frame in reader:
        if scale is None:
            upright = reader.orientation.size(frame.width, frame.height)
            scale = Scaler(*stored_size(*upright, short_side), reader.orientation)
            still = np.zeros((*grid_size(scale.width, scale.height, motion_cell), 2), np.float32)
            still.flags.writeable = False
        exported: Any = frame.side_data.get("MOTION_VECTORS")
        motion, valid = still, False
        if exported is not None and len(exported) > 0:
            valid = True
            motion = rasterise(
                exported.to_ndarray(),
                coded=(frame.width, frame.height),
                stored=(scale.width, scale.height),
                cell=motion_cell,
                orientation=reader.orientation,
            )
        yield StoredFrame(time, scale(frame), motion, valid)
