"""`VectorCheck`: whether a codec's own vectors can be used, judged by every packet and frame.

A header describes the pictures after it, not the whole stream: recordings are joined, encoders
change their settings, and each picture chooses its own references.
"""

from __future__ import annotations

from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from tatscli.video.h264 import References
from tatscli.video.origin import B_FRAMES, FIELDS, ONLY_ZEROS, ZERO_B_FRAMES, many_references


class VectorCheck:
    """Follows a stream whose own vectors are used until something in it rules them out.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: Its header in the container.

    Attributes:
        reason: Why the vectors cannot be used from here on; None while they can.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self.reason: str | None = None
        self._codec = codec
        self._references = References(extradata) if codec == "h264" else None
        self._frames = 0

    def read_packet(self, packet: Packet) -> None:
        """Read the headers of a packet, before it is decoded."""
        references = self._references
        if references is None or not packet.size:
            return
        if _has_description(packet):
            references.describe(bytes(packet.get_sidedata("new_extradata")))
        references.read(bytes(packet))
        if references.skips:
            self.reason = "some frames are never referred to: vectors may span several frames"
        elif references.most is not None and references.most > 1:
            self.reason = many_references(references.most)

    def read_frame(self, frame: VideoFrame) -> None:
        """Read the flags of a decoded frame."""
        self._frames += 1
        if frame.pict_type == PictureType.B and self._codec in ZERO_B_FRAMES:
            self.reason = ONLY_ZEROS.format(self._codec)
        elif frame.pict_type == PictureType.B and self._references is not None:
            self.reason = B_FRAMES
        # Of the first H.264 frame FFmpeg can only guess, and takes film with repeated fields for
        # interlaced. It is a key frame.
        elif frame.interlaced_frame and (self._references is None or self._frames > 1):
            self.reason = FIELDS


def _has_description(packet: Packet) -> bool:
    """Whether a container's next description of the stream begins with a packet."""
    return hasattr(packet, "has_sidedata") and packet.has_sidedata("new_extradata")  # PyAV 16 on
