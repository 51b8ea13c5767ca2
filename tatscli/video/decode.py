"""Opening a video and decoding it once, on one thread, with its motion vectors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tatscli.errors import DecodeError
from tatscli.video.orientation import UPRIGHT, Orientation

StrPath = str | os.PathLike[str]

_PLAUSIBLE_FPS = (0.1, 240.0)  # headers also say 1000, or nothing
_DEFAULT_FPS = 25.0
_NOT_MOVING = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_EMPTY_MESSAGES = {"error reading header"}  # FFmpeg's last word after it has said the reason


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video, from `start` up to but without `end`.

    Attributes:
        start: First second (presentation time) or frame.
        end: Where it ends; None is the end of the video.
        unit: What both are counted in.
    """

    start: float
    end: float | None = None
    unit: Literal["seconds", "frames"] = "seconds"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused: files that would take all memory, disk or time.

    Attributes:
        pixels: Of one picture.
        frames: Of one video or segment; None is no limit.
        seconds: Of one video or segment; None is no limit.
    """

    pixels: int = 1 << 26
    frames: int | None = None
    seconds: float | None = None


@contextmanager
def open_video(path: StrPath) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream; the container is closed on leaving.

    One decoding thread: workers decode whole files side by side, and frame threads are known to
    hang when a loop is left early (PyAV issues 1849 and 1861).

    Raises:
        DecodeError: The file does not open, or holds no video.
    """
    with _open(Path(path)) as container:
        stream = _moving_picture(container)
        stream.thread_type = "SLICE"  # type: ignore[assignment]  # PyAV's setter takes the name
        stream.thread_count = 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        yield container, stream


class VideoReader:
    """One pass over the pictures of a file: decoded frames, upright direction, presentation times.

    A damaged packet is skipped, as players do, and remembered in `problem`; only a file without any
    frame is an error.

    Args:
        path: A file FFmpeg can read.

    Attributes:
        codec: FFmpeg's name of the codec; known from the first frame on.
        size: Width and height of the first frame as decoded.
        step: Seconds between two frames by the header, where time stamps are missing.
        orientation: How frames have to be turned; known from the first frame on.
        problem: What went wrong on the way, once the iteration has ended; None if nothing did.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self.codec: str | None = None
        self.size = (0, 0)
        self.step = 1 / _DEFAULT_FPS
        self.orientation: Orientation = UPRIGHT
        self.problem: str | None = None
        self._errors: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield the presentation time in seconds, rising, and the decoded frame.

        Raises:
            DecodeError: The file does not open, holds no video, or not one frame of it decodes.
        """
        with open_video(self.path) as (container, stream):
            self.codec = stream.codec_context.codec.canonical_name
            self.step = 1 / nominal_fps(stream)
            last: float | None = None
            for frame in self._decode(container, stream):
                if last is None:
                    self.size = (frame.width, frame.height)
                    self.orientation = frame_orientation(frame)
                time = frame.time
                if time is None or (last is not None and time <= last):
                    time = 0.0 if last is None else last + self.step
                last = time
                yield time, frame
        reasons = "; ".join(
            f"{why} ({count} {'times' if count > 1 else 'time'})"
            for why, count in self._errors.items()
        )
        if last is None:
            raise DecodeError(f"no frame can be decoded: {reasons or 'there is no picture data'}")
        if reasons:
            self.problem = f"damaged, some frames are missing: {reasons}"

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._errors[_text(error)] += 1
                packet = None  # the file breaks off: take what the decoder still holds
            try:
                yield from stream.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                self._errors[_text(error)] += 1
            if packet is None:
                return


def nominal_fps(stream: VideoStream) -> float:
    """Return the header's frame rate where it is plausible; for streams without time stamps."""
    low, high = _PLAUSIBLE_FPS
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and low <= rate <= high:
            return float(rate)
    return _DEFAULT_FPS


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return how a decoded frame has to be turned to be upright."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else Orientation.from_matrix(bytes(matrix))


def _open(path: Path) -> InputContainer:
    """Open a container, or say in plain words why that fails."""
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DecodeError("the file is empty (0 bytes)")
    except OSError as error:
        raise DecodeError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    with _ffmpeg_speaks() as logs:
        try:
            # `file:` and the whitelist: neither a name such as `concat:a|b` nor a play list in
            # disguise reaches elsewhere
            return av.open(
                f"file:{path}",
                mode="r",
                metadata_errors="replace",
                options={"protocol_whitelist": "file"},
            )
        except av.FFmpegError as error:
            said = [message.splitlines()[0].strip(" .") for _, _, message in logs]
            details = [message for message in said if message not in _EMPTY_MESSAGES]
            detail = f"; {details[-1]}" if details else ""
            raise DecodeError(f"does not open as a video: {_text(error)}{detail}") from error


def _moving_picture(container: InputContainer) -> VideoStream:
    """Return the stream a player would show; never cover art or thumbnails."""
    moving = [s for s in container.streams.video if not s.disposition & _NOT_MOVING]
    if not moving:
        kinds = Counter(s.type for s in container.streams)
        held = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()) if kind != "video")
        cover = "only cover art" if container.streams.video else ""
        raise DecodeError(f"no video stream (holds {'; '.join(filter(None, [cover, held]))})")
    with suppress(av.FFmpegError):
        best = container.streams.best("video")
        if best in moving:
            return best
    return max(moving, key=lambda s: s.width * s.height)


@contextmanager
def _ffmpeg_speaks() -> Iterator[list[tuple[int, str, str]]]:
    """Collect FFmpeg's error messages, which hold the true reason; PyAV silences them otherwise."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or the second file with the same fault has no reason
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)


def _text(error: av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).rstrip(".")
