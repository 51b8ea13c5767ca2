"""What H.264 pictures may be predicted from, as the headers in a stream tell it.

FFmpeg reads them too, but PyAV does not pass them on.
"""

from __future__ import annotations

from collections.abc import Iterator

_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Profiles whose parameter sets hold chroma format, bit depths and scaling lists."""

_START_CODE = b"\x00\x00\x01"
_LONGEST_SPS = 1024  # bytes; twelve scaling lists take about half of it
_MOST_REFERENCES = 16  # of the standard (A.3.1); more is a damaged header

_SLICES = range(1, 6)  # NAL types of coded pictures
_IDR, _SPS = 5, 7
_PLAIN = (0x21, 0x41, 0x61)  # first bytes of slices that other pictures may refer to


class References:
    """Follows a stream's headers: how many frames pictures may refer to, and which they skip.

    Args:
        extradata: `avcC` (ISO 14496-15) or Annex B with start codes.

    Attributes:
        most: The largest `max_num_ref_frames` of all sequence parameter sets (SPS) so far; None
            until one can be read.
        fields: Whether any of them allows pictures of two fields.
        skips: Whether a picture has come whose reference cannot be the picture before it, because
            that one is marked as never referred to (`nal_ref_idc` 0).
    """

    def __init__(self, extradata: bytes) -> None:
        self.most: int | None = None
        self.fields = False
        self.skips = False
        self._unreferred = False  # whether no picture may refer to the last one
        self._length_size: int | None = None
        self.describe(extradata)

    def describe(self, extradata: bytes) -> None:
        """Read another header of the whole stream: a container may hold several, used in turn."""
        if extradata[:1] != b"\x01":
            self._length_size = None
            for start in _after_start_codes(extradata):
                if extradata[start] & 31 == _SPS:
                    self._add_sps(extradata[start:])
        elif len(extradata) > 6:
            self._length_size = (extradata[4] & 3) + 1
            start = 6
            for _ in range(extradata[5] & 31):
                size = int.from_bytes(extradata[start : start + 2])
                self._add_sps(extradata[start + 2 : start + 2 + size])
                start += 2 + size

    def read(self, packet: bytes) -> bool:
        """Read the headers of one picture, up to its first slice.

        Returns:
            Whether they said something new: anything but a picture that others may refer to, and
            that follows one.
        """
        size = self._length_size
        if size and len(packet) > size and packet[size] in _PLAIN and not self._unreferred:
            return False
        for start in self._units(packet):
            kind = packet[start] & 31
            if kind == _SPS:
                self._add_sps(packet[start : start + _LONGEST_SPS])
            elif kind in _SLICES:
                self.skips |= self._unreferred and kind != _IDR
                self._unreferred = not packet[start] >> 5 & 3
                break
        return True

    def _units(self, packet: bytes) -> Iterator[int]:
        """Yield where each NAL unit begins."""
        size = self._length_size
        if size is None or packet.startswith(b"\x00" + _START_CODE):  # whatever `avcC` says
            yield from _after_start_codes(packet)
            return
        start = size
        while start < len(packet):
            yield start
            start += int.from_bytes(packet[start - size : start]) + size

    def _add_sps(self, unit: bytes) -> None:
        # Without the bytes that keep start codes out of the payload.
        bits = _Bits(unit[1:].replace(b"\x00\x00\x03", b"\x00\x00"))
        try:
            count, fields = _read_sps(bits)
        except IndexError:
            return
        if count <= _MOST_REFERENCES:
            self.most = max(self.most or 0, count)
            self.fields |= fields


def _after_start_codes(data: bytes) -> Iterator[int]:
    """Yield the positions behind Annex B's start codes, where something follows."""
    found = data.find(_START_CODE)
    while 0 <= found < len(data) - len(_START_CODE):
        start = found + len(_START_CODE)
        yield start
        found = data.find(_START_CODE, start)


def _read_sps(bits: _Bits) -> tuple[int, bool]:
    """Return `max_num_ref_frames` of an SPS, and whether it allows fields (H.264, 7.3.2.1.1)."""
    profile = bits.fixed(8)
    bits.fixed(16)  # constraint flags and level
    bits.golomb()  # id
    if profile in _HIGH_PROFILES:
        chroma = bits.golomb()
        if chroma == 3:
            bits.fixed(1)
        bits.golomb(), bits.golomb(), bits.fixed(1)  # bit depths, lossless
        if bits.fixed(1):
            for index in range(8 if chroma != 3 else 12):
                if bits.fixed(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    bits.golomb()  # frame number
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.fixed(1), bits.golomb(), bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    count = bits.golomb()
    bits.fixed(1)  # gaps in the numbers of frames
    bits.golomb(), bits.golomb()  # width, height
    return count, not bits.fixed(1)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """Read past a list of `size` numbers; it ends early where the rest repeats (7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            delta = (code + 1) // 2 if code % 2 else -(code // 2)
            following = (last + delta) % 256
        last = following or last


class _Bits:
    """Reads bits and Exp-Golomb codes; an IndexError is the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fixed(self, count: int) -> int:
        """Read `count` bits, the highest first."""
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - self._at & 7) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """Read an unsigned Exp-Golomb code (9.1)."""
        zeros = 0
        while not self.fixed(1):
            zeros += 1
        return (1 << zeros) - 1 + self.fixed(zeros)
