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


def mp4_boxes(outer: Box, name: bytes | None = None) -> Iterator[Box]:
    """Yield the boxes inside a box, all or those of one type (ISO 14496-12, 4.2).

    Raises:
        struct.error: There is no box where one should be.
    """
    while outer.begin + 8 <= outer.end:
        size, kind = struct.unpack(">I4s", outer.read(8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", outer.after(8).read(8))
            head = 16
        elif size == 0:
            size = outer.end - outer.begin
        if size < head:
            return
        end = min(outer.begin + size, outer.end)
        if name in (None, kind):
            yield Box(outer.file, outer.begin + head, end)
        outer = outer._replace(begin=end)


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
