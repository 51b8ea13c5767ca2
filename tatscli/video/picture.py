"""Scaling decoded frames into stored pictures, in YUV as JPEG has it: full range, BT.601, 4:2:0."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from tatscli.errors import DecodeError
from tatscli.video.orientation import UPRIGHT, Orientation

PIXEL_FORMAT = "yuvj420p"

# The antialiasing triangle filter: on downscaling within 55 dB of Pillow's and torchvision's
# antialiased bilinear, and three times as fast as AREA.
_FILTER = Interpolation.BILINEAR
# The shortcuts of FFmpeg's default make greens two levels darker. In PyAV's names, which came with
# version 18: BILINEAR | FULL_CHR_H_INT | ACCURATE_RND.
_EXACT = 0x2 | 0x2000 | 0x40000
# One thread, where PyAV accepts the argument (17 and later); otherwise it uses every core.
ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


def stored_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Return the size of a stored picture: short side at most `short_side`, never enlarged."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return (
        max(1, (width * short_side + short // 2) // short),
        max(1, (height * short_side + short // 2) // short),
    )


class Scaler:
    """Converts decoded frames into upright pictures of one size.

    Args:
        width: Width of the stored, upright picture.
        height: Height of the stored, upright picture.
        orientation: How decoded frames are rotated.
    """

    def __init__(self, width: int, height: int, orientation: Orientation = UPRIGHT) -> None:
        self.width, self.height = width, height
        self._orientation = orientation
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> VideoFrame:
        """Return the stored picture of a frame of any size and pixel format.

        Raises:
            DecodeError: FFmpeg cannot convert this kind of picture.
        """
        width, height = self._orientation.size(self.width, self.height)
        try:
            picture = self._reformatter.reformat(
                frame,
                width=width,
                height=height,
                format=PIXEL_FORMAT,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.JPEG,
                interpolation=_FILTER,
                **ONE_THREAD,
            )
        except av.FFmpegError as error:
            raise DecodeError(
                f"pictures in `{frame.format.name}` cannot be converted: {error.strerror}"
            ) from error
        return picture if self._orientation == UPRIGHT else self._turn(picture)

    def _turn(self, picture: VideoFrame) -> VideoFrame:
        upright = VideoFrame(self.width, self.height, PIXEL_FORMAT)
        for source, target in zip(picture.planes, upright.planes, strict=True):
            _pixels(target)[:] = self._orientation.image(_pixels(source))
        return upright


def to_rgb(picture: VideoFrame) -> np.ndarray:
    """Return a stored picture as (H, W, 3) uint8, as a JPEG reader would."""
    return picture.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU601,
        dst_colorspace=Colorspace.ITU601,  # PyAV before 17 would otherwise take another one
        interpolation=_EXACT,
        **ONE_THREAD,
    ).to_ndarray()


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """View one plane as (height, width) uint8, without the padding at the end of its lines."""
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]
