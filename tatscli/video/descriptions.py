"""Sample descriptions of an MP4 or QuickTime track that FFmpeg passes over without a word."""

from __future__ import annotations

import struct
from pathlib import Path

from tatscli.video.boxes import Box, mp4_descriptions

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
            formats = [name for name, _ in mp4_descriptions(Box.whole(file), track)]
    except (OSError, struct.error):
        return []
    if not formats or formats[0] in _MIXED:
        return []
    others = dict.fromkeys(name for name in formats[1:] if name != formats[0])
    return [name.decode("latin-1") for name in others]


def left_out(path: Path, track: int, codec: str | None) -> str | None:
    """Say which frames of a track FFmpeg leaves out without a message; None if it reads all."""
    names = " and ".join(f"`{name}`" for name in unread_formats(path, track))
    if not names:
        return None
    return f"incomplete: FFmpeg reads only its frames in {codec}, not those in {names}"
