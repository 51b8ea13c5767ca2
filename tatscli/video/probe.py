"""`probe`: what a video file is, found by opening it and decoding its first frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tatscli.video.decode import StrPath, VideoReader, open_video


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts about the picture of a file; header values may be missing or wrong in the wild.

    Attributes:
        codec: FFmpeg's name of the codec.
        width: Of the decoded picture, before it is turned upright.
        height: Of the decoded picture, before it is turned upright.
        fps: Average frame rate of the header.
        frames: Number of frames by the header.
        duration: Seconds by the header.
        pix_fmt: FFmpeg's name of the pixel format.
        rotation: Degrees clockwise that turn the picture upright.
        mirrored: Whether it is mirrored left to right before.
        size_bytes: Size of the file.
    """

    codec: str
    width: int
    height: int
    fps: float | None
    frames: int | None
    duration: float | None
    pix_fmt: str
    rotation: int
    mirrored: bool
    size_bytes: int


def probe(path: StrPath) -> VideoInfo:
    """Open a file and decode its first frame.

    Raises:
        DecodeError: The file does not open, holds no video, or not one frame of it decodes.
    """
    with open_video(path) as (container, stream):
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / 1e6  # FFmpeg's clock of containers: microseconds
        rate, frames = stream.average_rate, stream.frames
    reader = VideoReader(path)
    _, frame = next(iter(reader))
    return VideoInfo(
        codec=reader.codec or "unknown",
        width=frame.width,
        height=frame.height,
        fps=float(rate) if rate else None,
        frames=frames or None,
        duration=duration,
        pix_fmt=frame.format.name,
        rotation=reader.orientation.rotation,
        mirrored=reader.orientation.mirrored,
        size_bytes=Path(path).stat().st_size,
    )
