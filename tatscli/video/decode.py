"""Opening a video: which stream, what its header says, and what is refused."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from tatscli.errors import DecodeError
from tatscli.video.containers import CONTAINERS

StrPath = str | os.PathLike[str]

_PLAUSIBLE_FPS = (0.1, 240.0)  # headers also say 1000, or nothing
DEFAULT_FPS = 25.0  # where nothing tells
# FFmpeg's words for formats, `AVFMT_NOTIMESTAMPS` and `AVFMT_TS_DISCONT`.
_NO_TIMESTAMPS: Any = Flags.no_timestamps.value
_MAY_RESTART: Any = Flags.ts_discont.value
_PLAUSIBLE_ASPECT = (1 / 8, 8)
_NOT_MOVING = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_SPEAKING = threading.Lock()
_UNHEARD = logging.NullHandler()
_REFUSED = "Format not on whitelist"  # FFmpeg's words
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
    """

    pixels: int = 1 << 26
    frames: int | None = None
    seconds: float | None = None

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


def nominal_fps(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the header's frame rate, for streams without timestamps; None if it is not plausible.

    Raw streams tell it in the stream itself, or nowhere: FFmpeg's average is 25 for all of them.
    """
    low, high = _PLAUSIBLE_FPS
    rates = [stream.average_rate, stream.guessed_rate]
    if is_raw(container):
        coded = stream.codec_context.framerate
        rates = [coded, stream.guessed_rate] if coded else []
    for rate in rates:
        if rate is not None and low <= rate <= high:
            return float(rate)
    return None


def is_raw(container: InputContainer) -> bool:
    """Whether a file is a stream without a container, and so without timestamps."""
    return bool(container.format.flags & _NO_TIMESTAMPS)


def may_restart(container: InputContainer) -> bool:
    """Whether time may start again within a file, as in MPEG-TS, MPEG-PS and Ogg."""
    return bool(container.format.flags & _MAY_RESTART)


def pixel_aspect(stream: VideoStream) -> float:
    """Return the width of a decoded pixel by its height; 1 where the header is silent or absurd."""
    ratio = stream.sample_aspect_ratio
    low, high = _PLAUSIBLE_ASPECT
    return float(ratio) if ratio and low <= ratio <= high else 1.0


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
        name, detail = _last_words(path)
        if detail.startswith(_REFUSED):
            raise DecodeError(
                f"not a video container: FFmpeg takes it for `{name}`, and playlists, scripts, "
                "images and devices are not opened",
                hint="if it is a video in a rare container, remux it into MP4 or Matroska",
            ) from error
        raise DecodeError(
            f"does not open as a video: {said(error)}{f'; {detail}' if detail else ''}"
        ) from error


def _container(path: Path) -> InputContainer:
    # `file:` and the whitelists: neither a name such as `concat:a|b` nor what a file contains makes
    # FFmpeg read anything else
    return av.open(
        f"file:{path}",
        mode="r",
        metadata_errors="replace",
        options={"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)},
    )


def _last_words(path: Path) -> tuple[str, str]:
    """Return who complains when FFmpeg opens a file that does not open, and what of; both may be
    empty. The file is opened a second time, since messages are switched on for all threads."""
    with _SPEAKING, _ffmpeg_speaks() as logs, suppress(av.FFmpegError):
        _container(path).close()
    messages = [(name, message.splitlines()[0].strip(" .")) for _, name, message in logs]
    details = [one for one in messages if one[1] not in _EMPTY_MESSAGES]
    return details[-1] if details else ("", "")


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
