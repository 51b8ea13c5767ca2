"""Sample descriptions of an MP4 or QuickTime track that FFmpeg passes over without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MIXED = {b"apcn", b"apch", b"dvpp", b"dvcp", b"AV1x", b"jpeg"}
"""First formats after which FFmpeg reads others as well."""


def unread_formats(path: Path, track: int) -> list[str]:
    """Return the formats of a track's frames that FFmpeg leaves out, as four letters each.

    One track may hold frames under several descriptions (ISO 14496-12, 8.5.2). FFmpeg changes from
    one to the next, but only where they are of the same format as the first.

    Args:
        path: The file; nothing is found in one that cannot be read.
        track: Number of the track.
    """
    try:
        with path.open("rb") as file:
            formats = _formats(file, track)
    except OSError:
        return []
    if not formats or formats[0] in _MIXED:
        return []
    others = dict.fromkeys(name for name in formats[1:] if name != formats[0])
    return [name.decode("latin-1") for name in others]


def _formats(file: BinaryIO, track: int) -> list[bytes]:
    """Return the formats of all descriptions of a track."""
    movie = _find(file, b"moov", 0, file.seek(0, 2))
    for name, *place in _boxes(file, *movie) if movie else ():
        if name != b"trak" or _number(file, *place) != track:
            continue
        for inner in (b"mdia", b"minf", b"stbl", b"stsd"):
            found = _find(file, inner, *place)
            if found is None:
                return []
            place = list(found)
        # Behind 8 bytes of version and count come boxes named by their formats.
        return [name for name, _, _ in _boxes(file, place[0] + 8, place[1])]
    return []


def _number(file: BinaryIO, start: int, end: int) -> int | None:
    """Return the number of the track between two positions."""
    header = _find(file, b"tkhd", start, end)
    if header is None:
        return None
    file.seek(header[0])
    head = file.read(24)
    at = 20 if head[:1] == b"\x01" else 12  # behind two times of 8 bytes, or of 4
    return int.from_bytes(head[at : at + 4])


def _find(file: BinaryIO, wanted: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Return where the content of the first box of a name begins and ends."""
    found = (place for name, *place in _boxes(file, start, end) if name == wanted)
    return next(((first, last) for first, last in found), None)


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, begin and end of the content of each box between two positions."""
    while start + 8 <= end:
        file.seek(start)
        head = file.read(16)
        size, begin = int.from_bytes(head[:4]), start + 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16]), start + 16
        stop = end if size == 0 else min(start + size, end)
        if stop < begin:  # damaged
            return
        yield head[4:8], begin, stop
        start = stop
