"""The source of a file's motion: its codec's own vectors, or those of a re-encoding.

A vector says which block a block was predicted from, not how many frames ago that was: FFmpeg's
`source` is only -1 or 1 (but for Snow). In the MPEG family every frame is predicted from the
nearest anchors (I or P), so the distance can be counted. H.264 may refer to any of several earlier
frames; only with a single reference frame is it known which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from av.video.stream import VideoStream

from tatscli.video.h264 import References

Wanted = Literal["auto", "native", "reencode", "none"]

_MPEG = "mpeg1video mpeg2video mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 wmv2 h263 h263p flv1 snow"
ANCHORED = frozenset(_MPEG.split())
"""Codecs whose vectors FFmpeg exports and that refer only to the nearest anchors."""

EXPORTING = ANCHORED | {"h264"}
"""Codecs whose vectors FFmpeg exports at all."""

ZERO_B_FRAMES = frozenset({"mpeg4"})
"""Codecs for whose B-frames FFmpeg exports blocks with all vectors zero."""

B_FRAMES = "B-frames: vectors may span several frames"
FIELDS = "interlaced: vectors of fields"
ONLY_ZEROS = "FFmpeg exports only zeros for B-frames of {}"

_KEY_FRAMES = "key frames only"

SEPARATE_FIELDS = frozenset({"hevc"})
"""Codecs that code each field as a frame of its own, of half the height."""

_SELF_FLAGGED = frozenset(
    ["mpeg2video", "mpeg4", "h264", "hevc", "vc1", "wmv3", "prores", "dvvideo", "dnxhd", "cavs"]
)
"""Codecs with an interlacing flag in each frame, which overrules the container's."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of a file's vectors.

    Attributes:
        kind: The codec's own, those of a re-encoding, or no vectors.
        why: The reason, for the manifest.
        anchored: Whether the distance to the reference follows from the frame types.
        b_frames: Whether the vectors of B-frames can be used.
    """

    kind: Literal["native", "reencode", "none"]
    why: str
    anchored: bool = False
    b_frames: bool = True


def many_references(count: int) -> str:
    """Return why the vectors of a stream with several reference frames cannot be used."""
    return f"{count} reference frames: vectors may span several frames"


def choose_origin(stream: VideoStream, wanted: Wanted) -> Origin:
    """Choose by the header of an opened stream; `VectorCheck` checks the frames that follow."""
    context = stream.codec_context
    codec = context.codec.canonical_name
    anchored = codec in ANCHORED
    if wanted == "none":
        return Origin("none", "requested by user")
    if wanted == "native":
        if codec in EXPORTING:
            return Origin("native", "requested by user", anchored, codec not in ZERO_B_FRAMES)
        return Origin("none", f"{codec} exports no motion vectors; try `--motion reencode`")
    if wanted == "reencode":
        return Origin("reencode", "requested by user")
    if codec not in EXPORTING:
        return Origin("reencode", f"{codec} exports no motion vectors")
    if container_interlaced(stream):
        return Origin("reencode", FIELDS)
    if codec in ZERO_B_FRAMES and context.has_b_frames:
        return Origin("reencode", ONLY_ZEROS.format(codec))
    if anchored:
        return Origin("native", f"{codec} refers to the nearest pictures", True)
    references = References(context.extradata or b"").most
    if references == 1:
        if context.has_b_frames:
            return Origin("reencode", B_FRAMES)
        return Origin("native", "one reference frame")
    if not references:
        why = "vectors may span several frames" if references is None else _KEY_FRAMES
        return Origin("reencode", why)
    return Origin("reencode", many_references(references))


def final_origin(origin: Origin, *, frames: int, moving: int) -> Origin:
    """Return the origin once a whole file has been read: `none` if no frame has vectors."""
    if moving or origin.kind == "none":
        return origin
    return Origin("none", "a single frame" if frames == 1 else _KEY_FRAMES)


def container_interlaced(stream: VideoStream) -> bool:
    """Whether the container declares every frame interlaced, and the codec has no flag for it."""
    order: int = getattr(stream.codec_context, "field_order", 0)  # 0 is unknown, 1 progressive
    return order > 1 and stream.codec_context.codec.canonical_name not in _SELF_FLAGGED


def is_disposable(picture: bytes) -> bool:
    """Whether a frame of Sorenson's H.263 (`flv1`) is a P-frame that is never referred to.

    FFmpeg reports it as an ordinary P-frame.

    Args:
        picture: The first 9 bytes of its packet.
    """
    header = int.from_bytes(picture[:9].ljust(9, b"\0"))  # 72 bits
    size = header >> 39 & 7  # after 30 bits of start code, version and time
    custom = {0: 16, 1: 32}.get(size, 0)  # bits of a width and height written out
    return header >> (37 - custom) & 3 > 1
