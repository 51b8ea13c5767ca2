"""`MotionEstimator`: motion vectors where the codec exports none, or none that are comparable.

libx264 encodes the stored pictures in memory, each predicted only from the one before it, and the
decoder exports the vectors that it chose. No network: a block search tuned for twenty years, at
about a millisecond per picture.
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
# with blocks down to 8 x 8. Higher quality fits noise, faster presets search only whole pixels.
# Only the first picture is a key frame; without look-ahead each picture gives one packet at once.
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
    """Finds the vectors between consecutive pictures of one size, by their brightness alone.

    Args:
        period: Seconds after which the encoder starts over from the previous picture, at multiples
            of this on the video's clock. A picture's vectors are then the same wherever reading
            began. None: it never starts over.
    """

    def __init__(self, period: float | None = None) -> None:
        self._period = period
        self._number = 0  # of the present period
        self._before: VideoFrame | None = None
        self._encoder: VideoCodecContext | None = None
        self._reformatter = VideoReformatter()  # kept: its tables are costly
        self._decoder = CodecContext.create("h264", "r")
        self._decoder.thread_count = 1
        self._decoder.options = _DECODER
        self._count = 0

    def __call__(self, picture: VideoFrame, time: float = 0.0) -> np.ndarray:
        """Return FFmpeg's rows from the previous picture to this one; none for the first.

        Args:
            picture: In any YUV format, of the same size as the first.
            time: Seconds since the beginning of the video, for the period.
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
        gray.pict_type = PictureType.NONE  # or the source's key frames become key frames here
        self._count += 1
        packets = self._encoder.encode(gray)
        frames = [frame for packet in packets for frame in self._decoder.decode(packet)]
        if len(frames) != 1:
            raise RuntimeError(
                f"libx264 returned {len(frames)} frames for one: it or the decoder uses look-ahead"
            )
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
