"""How many frames an H.264 stream may refer to: its sequence parameter set (SPS), read up to there.

FFmpeg reads it too, but PyAV does not pass it on.
"""

from __future__ import annotations

_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Those whose parameter sets tell chroma format, bit depths and scaling lists."""


def reference_frames(extradata: bytes) -> int | None:
    """Return `max_num_ref_frames` of the first sequence parameter set; None if there is none.

    Args:
        extradata: `avcC` (ISO 14496-15) or Annex B with start codes.
    """
    start = 8 if extradata[:1] == b"\x01" else max(extradata.find(b"\x00\x00\x01") + 3, 0)
    while 3 <= start < len(extradata) and extradata[start] & 31 != 7:  # NAL type 7 is an SPS
        following = extradata.find(b"\x00\x00\x01", start)
        start = following + 3 if following >= 0 else len(extradata)
    try:
        # Without the bytes that keep start codes out of the payload.
        return _read_sps(_Bits(extradata[start + 1 :].replace(b"\x00\x00\x03", b"\x00\x00")))
    except IndexError:
        return None


def _read_sps(bits: _Bits) -> int:
    """Read an SPS up to `max_num_ref_frames`, which is returned (ITU-T H.264, 7.3.2.1.1)."""
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
    return bits.golomb()


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
