"""Encoding: a stored picture to JPEG, and RGB frames to mp4, mkv, mov, gif or png."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.codec import CodecContext
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from tatscli.errors import UsageError

H264 = (".mp4", ".mkv", ".mov")
SUFFIXES = (*H264, ".gif", ".png")

_CLOCK = Fraction(1, 90000)  # MPEG's, for frames with presentation times
_APART = 90  # ticks between two frames at least: Matroska counts milliseconds


class JpegEncoder:
    """Encodes full-range 4:2:0 pictures of one size as JPEG files, straight from their planes.

    Args:
        quality: FFmpeg's scale, 2 (best) to 31; 2 and 3 give files about as large as Pillow's 90
            and 85.
    """

    def __init__(self, quality: int = 3) -> None:
        self._quality = quality
        self._encoder: av.VideoCodecContext | None = None
        self._count = 0

    def __call__(self, picture: VideoFrame) -> bytes:
        """Encode a picture in `yuvj420p`."""
        if self._encoder is None:
            self._encoder = _picture_encoder("mjpeg", picture)
            self._encoder.qmin = self._encoder.qmax = self._quality
            self._encoder.color_range = 2  # full
            # Optimal Huffman tables for each picture would save 3 % of the bytes and take 25 % more
            # time.
            self._encoder.options = {"huffman": "default", "flags": "+bitexact"}
        picture.pts, picture.time_base = self._count, self._encoder.time_base
        self._count += 1
        return b"".join(bytes(packet) for packet in self._encoder.encode(picture))


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    options: dict[str, str] | None = None,
) -> Path:
    """Write RGB frames to a file, in the format of its suffix; the write is atomic.

    Args:
        path: `.mp4`, `.mkv`, `.mov` (H.264), `.gif`, or `.png` (exactly one frame).
        frames: (H, W, 3) uint8, all of one size. H.264 needs even sides: for an odd one, the last
            row or column is repeated.
        fps: Frames per second.
        options: Options of the encoder, such as `{"crf": "18"}`.

    Raises:
        UsageError: Another suffix, no frame at all, or several frames for a png.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    _check_suffix(path, SUFFIXES)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UsageError(f"no frames to write to `{path}`")
    with _whole(path) as temporary:
        if suffix == ".png":
            if next(frames, None) is not None:
                raise UsageError(f"`{path}` can hold one picture, not several; use .gif or .mp4")
            temporary.write_bytes(encode_png(first))
        elif suffix == ".gif":
            _write_gif(temporary, first, chain([first], frames), _rate(fps), options or {})
        else:
            timeless = ((None, image) for image in chain([first], frames))
            _write_h264(temporary, first, timeless, _rate(fps), options or {})
    return path


def write_timed(
    path: str | os.PathLike[str], frames: Iterable[tuple[float, np.ndarray]], *, fps: float
) -> Path:
    """Write RGB frames with their presentation times as H.264; the write is atomic.

    Args:
        path: `.mp4`, `.mkv` or `.mov`.
        frames: Increasing presentation times in seconds, and pictures as for `write_video`. The
            first one starts the video.
        fps: Frames per second in the header.

    Raises:
        UsageError: Another suffix, or no frame at all.
    """
    path = Path(path)
    _check_suffix(path, H264)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise UsageError(f"no frames to write to `{path}`")
    with _whole(path) as temporary:
        _write_h264(temporary, first[1], chain([first], frames), _rate(fps), {})
    return path


def _check_suffix(path: Path, allowed: Sequence[str]) -> None:
    if path.suffix.lower() not in allowed:
        raise UsageError(f"cannot write `{path}`: its suffix must be one of {', '.join(allowed)}")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file, which is renamed on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix.lower()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.filename is None:  # FFmpeg's do not say which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def encode_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as a PNG file."""
    picture = _frame(image)
    return _encode_one(_picture_encoder("png", picture), picture)


def _write_h264(
    path: Path,
    first: np.ndarray,
    frames: Iterable[tuple[float | None, np.ndarray]],
    rate: Fraction,
    options: dict[str, str],
) -> None:
    """Write pictures at their times in seconds since the first, or at the frame rate if None."""
    height, width = (side + side % 2 for side in first.shape[:2])
    begin: float | None = None
    tick = -_APART
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for time, image in frames:
            margin = [(0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)]
            frame = _frame(np.pad(image, margin, mode="edge"))
            if time is not None:
                if begin is None:
                    begin, stream.codec_context.time_base = time, _CLOCK
                tick = max(round((time - begin) / _CLOCK), tick + _APART)
                frame.pts, frame.time_base = tick, _CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(
    path: Path,
    first: np.ndarray,
    frames: Iterable[np.ndarray],
    rate: Fraction,
    options: dict[str, str],
) -> None:
    """Write a GIF with one palette per frame, so that only one frame is in memory."""
    height, width = first.shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("gif", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.time_base = Fraction(1, 100)  # the format's clock
        for index, frame in enumerate(_paletted(frames, width, height, rate)):
            frame.pts, frame.time_base = round(index * 100 / rate), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _paletted(
    frames: Iterable[np.ndarray], width: int, height: int, rate: Fraction
) -> Iterator[VideoFrame]:
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=VideoFormat("rgb24"), time_base=1 / rate
    )
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=3")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, image in enumerate(chain(frames, [None])):
        frame = None if image is None else _frame(image)
        if frame is not None:
            frame.pts, frame.time_base = index, 1 / rate
        graph.push(frame)
        while True:
            try:
                yield graph.vpull()
            except (BlockingIOError, EOFError):
                break


def _picture_encoder(codec: str, picture: VideoFrame) -> av.VideoCodecContext:
    encoder = CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height = picture.width, picture.height
    encoder.pix_fmt = picture.format.name
    encoder.time_base = Fraction(1, 25)  # required, but without effect
    encoder.thread_count = 1
    return encoder


def _encode_one(encoder: av.VideoCodecContext, picture: VideoFrame) -> bytes:
    picture.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])


def _frame(image: np.ndarray) -> VideoFrame:
    return VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)
