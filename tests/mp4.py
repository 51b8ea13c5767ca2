"""MP4 files that FFmpeg does not write: one track whose sample descriptions are used in turn."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import av

_MATRIX = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def with_descriptions(path: Path, parts: Sequence[Path]) -> Path:
    """Write the video tracks of several MP4 files into one track, each under its own description.

    Every frame lasts 1 / 25 s, and those of each file are shown in its order of presentation.
    """
    entries, samples, shifts, counts, keys = [], [], [], [], []
    for part in parts:
        entries.append(_entry(part.read_bytes()))
        with av.open(str(part)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            size = (stream.width, stream.height)
        order = sorted(packet.pts for packet in packets)
        for index, packet in enumerate(packets):
            shifts.append(order.index(packet.pts) - index)
            keys.append(packet.is_keyframe)
            samples.append(bytes(packet))
        counts.append(len(packets))
    total = len(samples)
    head = _box("ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    data = _box("mdat", *samples)
    offsets = [len(head) + 8]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample))
    first = [1 + sum(counts[:index]) for index in range(len(counts))]  # one sample is one chunk
    table = _box(
        "stbl",
        _full("stsd", struct.pack(">I", len(entries)), *entries),
        _full("stts", struct.pack(">III", 1, total, 1)),
        _full(
            "ctts", struct.pack(">I", total), *(struct.pack(">Ii", 1, s) for s in shifts), version=1
        ),
        _full(
            "stss",
            struct.pack(">I", sum(keys)),
            *(struct.pack(">I", n + 1) for n, k in enumerate(keys) if k),
        ),
        _full(
            "stsc",
            struct.pack(">I", len(first)),
            *(struct.pack(">III", f, 1, n + 1) for n, f in enumerate(first)),
        ),
        _full("stsz", struct.pack(">II", 0, total), *(struct.pack(">I", len(s)) for s in samples)),
        _full("stco", struct.pack(">I", total), *(struct.pack(">I", o) for o in offsets[:-1])),
    )
    media = _box(
        "mdia",
        _full("mdhd", struct.pack(">IIIIHH", 0, 0, 25, total, 0x55C4, 0)),
        _full("hdlr", b"\0\0\0\0vide" + bytes(12) + b"\0"),
        _box(
            "minf",
            _full("vmhd", bytes(8), flags=1),
            _box("dinf", _full("dref", struct.pack(">I", 1), _full("url ", flags=1))),
            table,
        ),
    )
    track = _full(
        "tkhd",
        struct.pack(">IIIII", 0, 0, 1, 0, total) + bytes(16) + _MATRIX,
        struct.pack(">II", size[0] << 16, size[1] << 16),
        flags=3,
    )
    movie = _full(
        "mvhd",
        struct.pack(">IIIIIH", 0, 0, 25, total, 1 << 16, 1 << 8) + bytes(10) + _MATRIX,
        bytes(24) + struct.pack(">I", 2),
    )
    path.write_bytes(head + data + _box("moov", movie, _box("trak", track, media)))
    return path


def _box(name: str, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name.encode() + data


def _full(name: str, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(name, struct.pack(">I", version << 24 | flags), *content)


def _entry(file: bytes) -> bytes:
    """Return the only sample description of an MP4 file's first track."""
    data = file
    for name in ("moov", "trak", "mdia", "minf", "stbl", "stsd"):
        data = next(content for found, content in _boxes(data) if found == name)
    return data[8:]


def _boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at < len(data):
        size = struct.unpack_from(">I", data, at)[0]
        yield data[at + 4 : at + 8].decode("latin-1"), data[at + 8 : at + size]
        at += size
