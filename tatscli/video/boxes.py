"""The nested boxes of MP4 and MOV files, and the nested elements of Matroska files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple


class Box(NamedTuple):
    """A stretch of a file: the content of a box or element.

    Attributes:
        file: Open for reading.
        begin: First byte.
        end: Byte after the last.
    """

    file: BinaryIO
    begin: int
    end: int

    @classmethod
    def whole(cls, file: BinaryIO) -> Box:
        """Return a file as a box."""
        return cls(file, 0, file.seek(0, os.SEEK_END))

    def after(self, count: int) -> Box:
        """Return the box without its first bytes."""
        return self._replace(begin=min(self.begin + count, self.end))

    def read(self, count: int) -> bytes:
        """Return the first bytes of the content, fewer where it is shorter."""
        self.file.seek(self.begin)
        return self.file.read(max(0, min(count, self.end - self.begin)))


def mp4_boxes(outer: Box) -> Iterator[tuple[bytes, Box]]:
    """Yield the type and content of each box inside a box (ISO 14496-12, 4.2).

    Raises:
        struct.error: The file ends within a box.
    """
    while outer.begin + 8 <= outer.end:
        size, kind = struct.unpack(">I4s", outer.read(8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", outer.after(8).read(8))
            head = 16
        elif size == 0:
            size = outer.end - outer.begin
        if size < head:  # damaged
            return
        end = min(outer.begin + size, outer.end)
        yield kind, Box(outer.file, outer.begin + head, end)
        outer = outer._replace(begin=end)


def mp4_find(outer: Box, *path: bytes) -> Iterator[Box]:
    """Yield the boxes at a path of types inside a box."""
    for kind, box in mp4_boxes(outer):
        if kind == path[0]:
            yield from mp4_find(box, *path[1:]) if len(path) > 1 else [box]


def mp4_descriptions(file: Box, track_id: int) -> Iterator[tuple[bytes, Box]]:
    """Yield the format and content of each sample description of a track."""
    for track in mp4_find(file, b"moov", b"trak"):
        if track_id in map(_track_id, mp4_find(track, b"tkhd")):
            for table in mp4_find(track, b"mdia", b"minf", b"stbl", b"stsd"):
                yield from mp4_boxes(table.after(8))  # after version and count


def _track_id(header: Box) -> int:
    long = header.read(1) == b"\x01"  # two times before it have 8 bytes each, not 4
    return int.from_bytes(header.after(20 if long else 12).read(4))


def matroska_elements(outer: Box, name: int, until: int | None = None) -> Iterator[Box]:
    """Yield the elements of one kind inside an element (RFC 8794, 4 to 6).

    Args:
        outer: The element, or a file.
        name: Identifier, with its length marker.
        until: Identifier of an element at which to stop.

    Raises:
        struct.error: There is no element where one should be.
    """
    while outer.begin < outer.end:
        (first,) = struct.unpack("B", outer.read(1))
        length = 9 - first.bit_length()
        kind = int.from_bytes(outer.read(length))
        size, head = _size(outer.after(length))
        if kind == until or length > 4:
            return
        begin = outer.begin + length + head
        end = outer.end if size is None else min(begin + size, outer.end)
        if kind == name:
            yield Box(outer.file, begin, end)
        outer = outer._replace(begin=end)


def _size(at: Box) -> tuple[int | None, int]:
    """Return a size, None where it is unknown, and its own length in bytes."""
    (first,) = struct.unpack("B", at.read(1))
    length = 9 - first.bit_length()
    value = int.from_bytes(at.read(length)) & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), length
