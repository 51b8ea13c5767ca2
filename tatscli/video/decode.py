"""Opening a video: which stream, what its header says, and what is refused."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from tatscli.errors import DecodeError

StrPath = str | os.PathLike[str]

_PLAUSIBLE_FPS = (0.1, 240.0)  # headers also say 1000, or nothing
_DEFAULT_FPS = 25.0
_PLAUSIBLE_ASPECT = (1 / 8, 8)
_NOT_MOVING = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_SPEAKING = threading.Lock()
_UNHEARD = logging.NullHandler()
_EMPTY_MESSAGES = {"error reading header"}  # FFmpeg's last word after it has said the reason


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video, from `start` up to but without `end`.

    Attributes:
        start: First second or frame, from the beginning of the video as players show it.
        end: Where it ends; None is the end of the video.
        unit: What both are counted in.
    """

    start: float
    end: float | None = None
    unit: Literal["seconds", "frames"] = "seconds"


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused: files that would take all memory, disk or time.

    Headers are checked before anything is decoded, and the frames themselves on the way, since
    headers lie.

    Attributes:
        pixels: Of one picture.
        frames: Of one video or segment; None is no limit.
        seconds: Of one video or segment; None is no limit.
        min_share: Share of the frames that the header announces, or the segment asks for, that must
            be there; known at the end.
    """

    pixels: int = 1 << 26
    frames: int | None = None
    seconds: float | None = None
    min_share: float = 0.5

    def check_picture(self, width: int, height: int) -> None:
        """Raise a DecodeError if pictures are too large."""
        if width * height > self.pixels:
            raise DecodeError(
                f"too large: {width} x {height} pixels, more than `--max-pixels` {self.pixels}"
            )

    def check_length(self, frames: int, seconds: float) -> None:
        """Raise a DecodeError if a video is too long."""
        if self.frames is not None and frames > self.frames:
            raise DecodeError(f"too long: more than `--max-frames` {self.frames}")
        if self.seconds is not None and seconds > self.seconds:
            raise DecodeError(f"too long: more than `--max-duration` {self.seconds:g} s")


@contextmanager
def open_video(path: StrPath) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream; the container is closed on leaving.

    One decoding thread: workers decode whole files side by side, frame threads are known to hang
    when a loop is left early (PyAV issues 1849 and 1861), and they lose motion vectors.

    Raises:
        DecodeError: The file does not open, or holds no video.
    """
    with _open(Path(path)) as container:
        stream = _moving_picture(container)
        if stream.codec_context is None:
            raise DecodeError("no decoder for its codec")
        stream.thread_type = "SLICE"  # type: ignore[assignment]  # PyAV's setter takes the name
        stream.thread_count = 1
        yield container, stream


def nominal_fps(stream: VideoStream) -> float:
    """Return the header's frame rate where it is plausible; for streams without time stamps."""
    low, high = _PLAUSIBLE_FPS
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and low <= rate <= high:
            return float(rate)
    return _DEFAULT_FPS


def pixel_aspect(stream: VideoStream) -> float:
    """Return the width of a decoded pixel by its height; 1 where the header is silent or absurd."""
    ratio = stream.sample_aspect_ratio
    low, high = _PLAUSIBLE_ASPECT
    return float(ratio) if ratio and low <= ratio <= high else 1.0


def header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the length of a video stream by the header; None where it tells none.

    That of the file counts for it only where there is no other stream. FFmpeg guesses an AVI's from
    the size of the file, so here the count of frames tells it.
    """
    if container.format.name == "avi":
        rate = stream.average_rate
        seconds = float(stream.frames / rate) if rate else 0.0
    elif stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif clock := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        hours, minutes, rest = map(float, clock.groups())  # as Matroska's muxers write it
        seconds = 3600 * hours + 60 * minutes + rest
    elif container.duration is not None and len(container.streams) == 1:
        seconds = container.duration / 1e6
    else:
        return None
    return seconds if seconds > 0 else None


def said(error: Exception) -> str:
    """Return FFmpeg's words for an error."""
    words: str | None = getattr(error, "strerror", None)
    return (words or type(error).__name__).rstrip(".")


def _open(path: Path) -> InputContainer:
    """Open a container, or say in plain words why that fails."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would wait for ever
            raise DecodeError("cannot be read: it is not a file but a pipe or device")
        with path.open("rb") as file:
            if not file.read(1):
                raise DecodeError("the file is empty (0 bytes)")
    except OSError as error:
        raise DecodeError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        return _container(path)
    except av.FFmpegError as error:
        detail = _last_words(path)
        raise DecodeError(f"does not open as a video: {said(error)}{detail}") from error


def _container(path: Path) -> InputContainer:
    # `file:` and the whitelist: neither a name such as `concat:a|b` nor a play list in disguise
    # reaches elsewhere
    return av.open(
        f"file:{path}",
        mode="r",
        metadata_errors="replace",
        options={"protocol_whitelist": "file"},
    )


def _last_words(path: Path) -> str:
    """Return what FFmpeg says when it opens a file that does not open: a second time, since its
    messages are switched on for all threads at once."""
    with _SPEAKING, _ffmpeg_speaks() as logs, suppress(av.FFmpegError):
        _container(path).close()
    messages = [message.splitlines()[0].strip(" .") for _, _, message in logs]
    details = [message for message in messages if message not in _EMPTY_MESSAGES]
    return f"; {details[-1]}" if details else ""


def _moving_picture(container: InputContainer) -> VideoStream:
    """Return the stream a player would show; never cover art or thumbnails."""
    moving = [s for s in container.streams.video if not s.disposition & _NOT_MOVING]
    if not moving:
        kinds = Counter(s.type for s in container.streams)
        held = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()) if kind != "video")
        cover = "only cover art" if container.streams.video else ""
        holds = "; ".join(filter(None, [cover, held])) or "nothing"
        raise DecodeError(f"no video stream (holds {holds})")
    with suppress(av.FFmpegError):
        best = container.streams.best("video")
        if best in moving:
            return best
    return max(moving, key=lambda s: s.width * s.height)


@contextmanager
def _ffmpeg_speaks() -> Iterator[list[tuple[int, str, str]]]:
    """Collect FFmpeg's error messages, which hold the true reason; PyAV silences them otherwise."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    # What other threads decode meanwhile is heard by nobody. It stays: their words may come late.
    logging.getLogger("libav").addHandler(_UNHEARD)
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or the second file with the same fault has no reason
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
