"""MP4 files that FFmpeg does not write, made from files that it has written."""

from __future__ import annotations

import struct
from pathlib import Path

_PATH = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def box(kind: bytes, *content: bytes) -> bytes:
    """Return an MP4 box."""
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def clean_aperture(width: int, height: int, right: int = 0, down: int = 0) -> bytes:
    """Return a clean aperture of this size, its centre off by so much to the right and down."""
    return box(b"clap", struct.pack(">8i", width, 1, height, 1, right, 1, down, 1))


def add_to_description(path: Path, new: bytes) -> None:
    """Add a box to the description of the only H.264 video of a file, whose index is at its end."""
    data, end = path.read_bytes(), 0
    for kind in (b"avc1", *reversed(_PATH)):
        begin = data.rindex(kind) - 4
        (size,) = struct.unpack_from(">I", data, begin)
        end = end or begin + size
        data = data[:begin] + struct.pack(">I", size + len(new)) + data[begin + 4 :]
    path.write_bytes(data[:end] + new + data[end:])


def join(one: Path, other: Path, path: Path) -> Path:
    """Join two H.264 files without B-frames into one track, with a description for each part."""
    files = [one.read_bytes(), other.read_bytes()]
    media = [_content(data, b"mdat") for data in files]
    tables = [_content(data, *_PATH[:-1]) for data in files]
    counts = [struct.unpack_from(">I", _content(table, b"stsz"), 8)[0] for table in tables]
    kind = box(b"ftyp", b"isom", bytes(4), b"isom")
    offsets = len(kind) + 8, len(kind) + 8 + len(media[0])
    samples = box(
        b"stbl",
        _table(b"stsd", 2, *(_content(table, b"stsd")[8:] for table in tables)),
        _table(b"stts", 1, struct.pack(">2I", sum(counts), 512)),
        _table(b"stss", 2, struct.pack(">2I", 1, 1 + counts[0])),
        _table(b"stsc", 2, struct.pack(">6I", 1, counts[0], 1, 2, counts[1], 2)),
        box(
            b"stsz",
            struct.pack(">3I", 0, 0, sum(counts)),
            *(_content(table, b"stsz")[12:] for table in tables),
        ),
        _table(b"stco", 2, struct.pack(">2I", *offsets)),
    )
    video = _content(files[0], b"moov", b"trak", b"mdia")
    track = box(
        b"trak",
        _whole(_content(files[0], b"moov", b"trak"), b"tkhd"),
        box(
            b"mdia",
            _whole(video, b"mdhd"),
            _whole(video, b"hdlr"),
            box(
                b"minf",
                _whole(_content(video, b"minf"), b"vmhd"),
                _whole(_content(video, b"minf"), b"dinf"),
                samples,
            ),
        ),
    )
    index = box(b"moov", _whole(_content(files[0], b"moov"), b"mvhd"), track)
    path.write_bytes(kind + box(b"mdat", *media) + index)
    return path


def refer_to(name: str, path: Path, target: Path) -> Path:
    """Write an index of the same media that says they lie in another file beside it."""
    called, place = b"volume:" + name.encode(), b"/" + name.encode()
    alias = bytes(10) + b"\6" + b"volume".ljust(27, b"\0") + bytes(12)
    alias += bytes([len(name)]) + name.encode().ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">2h", 1, 1) + bytes(16)
    for kind, text in ((2, called), (18, place)):
        alias += struct.pack(">2H", kind, len(text)) + text + bytes(len(text) % 2)
    here = box(b"url ", b"\0\0\0\1")
    there = box(b"alis", bytes(4), alias, b"\xff\xff\0\0")
    data = path.read_bytes()
    at = data.rindex(here)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        begin = data.rindex(kind, 0, at) - 4
        (size,) = struct.unpack_from(">I", data, begin)
        size += len(there) - len(here)
        data = data[:begin] + struct.pack(">I", size) + data[begin + 4 :]
    data = data[:at] + there + data[at + len(here) :]
    media = _content(data, b"mdat")
    target.write_bytes(data.replace(media, bytes(len(media))))
    return target


def _table(kind: bytes, count: int, *rows: bytes) -> bytes:
    return box(kind, struct.pack(">2I", 0, count), *rows)


def _whole(data: bytes, kind: bytes) -> bytes:
    """Return the first box of a kind, with its head."""
    at = 0
    while data[at + 4 : at + 8] != kind:
        at += struct.unpack_from(">I", data, at)[0]
    return data[at : at + struct.unpack_from(">I", data, at)[0]]


def _content(data: bytes, *path: bytes) -> bytes:
    for kind in path:
        data = _whole(data, kind)[8:]
    return data
