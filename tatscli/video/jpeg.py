"""Checking a stored JPEG: whether it decodes, and its size."""

from __future__ import annotations

import av
from av.video.codeccontext import VideoCodecContext

from tatscli.errors import DecodeError


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Decode a JPEG completely and return its width and height.

    Raises:
        DecodeError: It does not decode, or only with damage that players would hide.
    """
    decoder = VideoCodecContext.create("mjpeg", "r")
    decoder.thread_count = 1
    decoder.options = {"err_detect": "explode"}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except av.FFmpegError as error:
        raise DecodeError(f"does not decode: {error.strerror}") from error
    if not frames:
        raise DecodeError("does not decode: no picture")
    return frames[0].width, frames[0].height
