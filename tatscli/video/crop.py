"""The part of the picture that the container tells players to show, and cutting it out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tatscli.video.boxes import Box, matroska_elements, mp4_descriptions, mp4_find
from tatscli.video.filters import filter_graph

_SIDES = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # Matroska's left, top, right, bottom
_SMALL = 1 << 18  # bytes that are searched at once
_ENTRY_HEAD = 78  # bytes of a video's sample entry before the boxes in it


@dataclass(frozen=True, slots=True)
class Crop:
    """Pixels to leave out at each side of the decoded picture, before it is turned upright."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that are left of a decoded picture."""
        return width - self.left - self.right, height - self.top - self.bottom


WHOLE = Crop()


def container_crop(path: Path, container: InputContainer, stream: VideoStream) -> Crop:
    """Return the crop of a stream: Matroska's `PixelCrop...`, the clean aperture of MP4 and MOV.

    FFmpeg reads both, but PyAV does not pass them on. `WHOLE` is what there is no crop for, or
    none that makes sense.
    """
    name = container.format.name
    try:
        with path.open("rb") as file:
            if name.startswith("mov"):
                crop = _clean_aperture(Box.whole(file), stream.id)
            elif name.startswith("matroska"):
                crop = _pixel_crop(Box.whole(file), list(container.streams.video).index(stream))
            else:
                return WHOLE
    except (OSError, struct.error, ArithmeticError):  # damaged, and FFmpeg has read around it
        return WHOLE
    context = stream.codec_context
    inside = min(crop.left, crop.top, crop.right, crop.bottom) >= 0
    return crop if inside and min(crop.size(context.width, context.height)) > 0 else WHOLE


class Cropper:
    """Cuts decoded frames."""

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()
        self._graph: Graph | None = None

    def __call__(self, frame: VideoFrame, crop: Crop) -> VideoFrame:
        """Return what a crop leaves of a frame; it shares the frame's memory."""
        if crop == WHOLE:
            return frame
        kind = frame.width, frame.height, frame.format.name, crop
        if self._graph is None or kind != self._kind:
            width, height = crop.size(frame.width, frame.height)
            self._kind = kind
            self._graph = filter_graph(
                frame, "crop", f"w={width}:h={height}:x={crop.left}:y={crop.top}:exact=1"
            )
        self._graph.push(frame)
        return self._graph.vpull()


def _pixel_crop(file: Box, index: int) -> Crop:
    """Read the crop of a Matroska file's video track, counted from 0 (RFC 9559, 5.1.4.1.28)."""
    videos = [
        video
        for segment in matroska_elements(file, 0x18538067)
        for tracks in matroska_elements(segment, 0x1654AE6B, until=0x1F43B675)
        if _may_hold(tracks, *(side.to_bytes(2) for side in _SIDES))
        for track in matroska_elements(tracks, 0xAE)
        for video in matroska_elements(track, 0xE0)
    ]
    if index >= len(videos):
        return WHOLE
    return Crop(
        *(
            sum(int.from_bytes(side.read(8)) for side in matroska_elements(videos[index], name))
            for name in _SIDES
        )
    )


def _clean_aperture(file: Box, track_id: int) -> Crop:
    """Read the crop of a track of MP4 or MOV (ISO 14496-12, 12.1.4), by its first description."""
    if not any(_may_hold(movie, b"clap") for movie in mp4_find(file, b"moov")):
        return WHOLE
    for _, entry in mp4_descriptions(file, track_id):
        width, height = struct.unpack(">HH", entry.after(24).read(4))
        for aperture in mp4_find(entry.after(_ENTRY_HEAD), b"clap"):
            return _around(width, height, struct.unpack(">8i", aperture.read(32)))
        break
    return WHOLE


def _may_hold(box: Box, *marks: bytes) -> bool:
    """Whether a box is worth going through: hardly any file has a crop."""
    content = box.read(_SMALL)
    return len(content) == _SMALL or any(mark in content for mark in marks)


def _around(width: int, height: int, values: tuple[int, ...]) -> Crop:
    """Return what lies around an aperture: width, height, and where its centre is off."""
    wide, tall, right, down = (
        Fraction(values[at], values[at + 1]) for at in range(0, len(values), 2)
    )
    left = round((width - wide) / 2 + right)
    top = round((height - tall) / 2 + down)
    return Crop(left, top, width - left - round(wide), height - top - round(tall))
