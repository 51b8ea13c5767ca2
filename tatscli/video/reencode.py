"""`MotionEstimator`: vectors for pictures whose codec gives none, or none that can be compared.

libx264 encodes the stored pictures in memory so that each one is predicted from the picture just
before it, and the decoder exports the vectors it chose. No network and no second codec: a block
search that has been tuned for twenty years, for about a millisecond a picture.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.codec import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter

from tatscli.video.motion import exported
from tatscli.video.picture import ONE_THREAD

# Measured on pans, patches and noise (tests/benchmarks/bench_reencode.py): quarter-pixel search
# with blocks down to 8 x 8. Better quality follows noise, faster presets search whole pixels only.
# No key frame but the first; without look-ahead one picture in is one packet out.
_ENCODER = {
    "preset": "ultrafast",
    "tune": "zerolatency",
    "crf": "23",
    "bf": "0",
    "refs": "1",
    "g": "100000000",
    "x264-params": "subme=2:me=hex:merange=24:partitions=p8x8:scenecut=0:keyint=infinite",
}
_DECODER = {
    "flags2": "+export_mvs",
    "flags": "+low_delay",
    "skip_loop_filter": "all",
    "skip_idct": "all",
}


class MotionEstimator:
    """Finds the vectors between successive pictures of one size.

    Only brightness is looked at.

    Args:
        period: Seconds after which the encoder forgets all but the picture before, at multiples of
            this on the video's clock: so a picture's vectors are the same wherever reading began,
            if it was before that. None never forgets.
    """

    def __init__(self, period: float | None = None) -> None:
        self._period = period
        self._number = 0  # of the present period
        self._before: VideoFrame | None = None
        self._encoder: VideoCodecContext | None = None
        self._reformatter = VideoReformatter()  # kept, or each picture makes its tables anew
        self._decoder = CodecContext.create("h264", "r")
        self._decoder.thread_count = 1
        self._decoder.options = _DECODER
        self._count = 0

    def __call__(self, picture: VideoFrame, time: float = 0.0) -> np.ndarray:
        """Return FFmpeg's rows that lead from the picture before to this one; none for the first.

        Args:
            picture: In any YUV format; the size is that of the first one.
            time: When it is shown, in seconds; what periods are counted by.
        """
        gray = self._reformatter.reformat(picture, format="gray", **ONE_THREAD)
        if self._period is not None:
            number = int(time // self._period)
            if number != self._number and self._before is not None:
                self._encoder = None
                self._encode(self._before)
            self._number, self._before = number, gray
        return self._encode(gray)

    def _encode(self, gray: VideoFrame) -> np.ndarray:
        if self._encoder is None:
            self._encoder = _encoder(gray.width, gray.height)
        gray.pts, gray.time_base = self._count, self._encoder.time_base
        gray.pict_type = PictureType.NONE  # a source's key frame would become one here
        self._count += 1
        packets = self._encoder.encode(gray)
        frames = [frame for packet in packets for frame in self._decoder.decode(packet)]
        if len(frames) != 1:
            raise RuntimeError(f"{len(frames)} frames for one: libx264 or the decoder looks ahead")
        return exported(frames[0])


def _encoder(width: int, height: int) -> VideoCodecContext:
    encoder = CodecContext.create("libx264", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height = width, height
    encoder.pix_fmt = "gray"
    encoder.time_base = Fraction(1, 25)
    encoder.thread_count = 1
    encoder.options = _ENCODER
    return encoder
