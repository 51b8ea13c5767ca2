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
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    target.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    return target
