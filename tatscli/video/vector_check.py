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
        self._references = References(extradata) if codec == "h264" else None
        self._b_frames: str | None = None  # why there must be none
        if codec in ZERO_B_FRAMES:
            self._b_frames = ONLY_ZEROS.format(codec)
        elif codec == "h264":
            self._b_frames = B_FRAMES
        self._first = True

    def read_packet(self, packet: Packet) -> None:
        """Read the headers of a packet, before it is decoded.

        Cheaply, since most say nothing new: decoding a small picture takes no longer than a few
        dozen lines of Python.
        """
        references = self._references
        if references is None:
            return
        if packet.is_keyframe and _has_description(packet):
            references.describe(bytes(packet.get_sidedata("new_extradata")))
        if not references.read(bytes(packet)):
            return
        if references.skips:
            self.reason = "some frames are never referred to: vectors may span several frames"
        elif references.most is not None and references.most > 1:
            self.reason = many_references(references.most)

    def read_frame(self, frame: VideoFrame) -> str | None:
        """Read the flags of a decoded frame; return the reason, if there is one by now."""
        if frame.interlaced_frame:
            # Of the first H.264 frame FFmpeg can only guess, and takes film with repeated fields
            # for interlaced. It is a key frame.
            if self._references is None or not self._first:
                self.reason = FIELDS
        elif frame.pict_type == PictureType.B and self._b_frames is not None:
            self.reason = self._b_frames
        self._first = False
        return self.reason


def _has_description(packet: Packet) -> bool:
    """Whether a container's next description of the stream begins with a packet."""
    return hasattr(packet, "has_sidedata") and packet.has_sidedata("new_extradata")  # PyAV 16 on
