"""Opening a video: which stream to read, what its header says, and what is refused."""

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
from functools import lru_cache
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

_PLAUSIBLE_FPS = (0.1, 240.0)  # some headers claim 1000, or nothing
DEFAULT_FPS = 25.0  # where the file gives no rate
# `AVFMT_NOTIMESTAMPS` and `AVFMT_TS_DISCONT`.
_NO_TIMESTAMPS: Any = Flags.no_timestamps.value
_MAY_RESTART: Any = Flags.ts_discont.value
_PLAUSIBLE_ASPECT = (1 / 8, 8)
_STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
_CAPTURE_LOCK = threading.Lock()
_DISCARD = logging.NullHandler()
_REFUSED = "Format not on whitelist"  # FFmpeg's message
_UNINFORMATIVE = {"error reading header"}  # comes after the message with the reason


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a video, from `start` up to but not including `end`.

    Attributes:
        start: First second or frame, counted from where players start the video.
        end: Where it ends; None means the end of the video.
        unit: Unit of both.
    """

    start: float
    end: float | None = None
    unit: Literal["seconds", "frames"] = "seconds"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits above which a file is refused, before it uses up memory, disk or time.

    The header is checked before anything is decoded and every frame while decoding, because
    headers lie.

    Attributes:
        pixels: Most pixels in a picture.
        frames: Most frames in a video or segment; None means no limit.
        seconds: Longest video or segment; None means no limit.
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
    """Open a file and choose its video stream; the container is closed on exit.

    Decoding uses one thread: workers decode different files in parallel, frame threads can hang
    when iteration stops early (PyAV issues 1849 and 1861), and they lose motion vectors.

    Raises:
        DecodeError: The file does not open, or holds no video.
    """
    with _open(Path(path)) as container:
        stream = _video_stream(container)
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


def may_seek(path: Path, container: InputContainer, stream: VideoStream) -> bool:
    """Whether a timestamp means one place of a file: in MPEG-TS, MPEG-PS and Ogg time may restart.

    Then the packets of such a file are read once, without decoding them.
    """
    if not container.format.flags & _MAY_RESTART:
        return True
    return not _restarts(path, path.stat().st_mtime_ns, stream.index)


@lru_cache(maxsize=16)
def _restarts(path: Path, changed: int, index: int) -> bool:
    """Whether decoding times fall somewhere in a stream; `changed` is when the file was."""
    last: int | None = None
    with _open(path) as container:
        packets = container.demux(container.streams[index])
        try:
            for packet in packets:
                if packet.dts is not None:
                    if last is not None and packet.dts < last:
                        return True
                    last = packet.dts
        except (av.FFmpegError, IndexError):  # PyAV's, where a stream begins midway
            return True
    return False


def pixel_aspect(stream: VideoStream) -> float:
    """Return a decoded pixel's width divided by its height; 1 if the header gives no sane ratio."""
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


def error_text(error: Exception) -> str:
    """Return FFmpeg's text for an error."""
    text: str | None = getattr(error, "strerror", None)
    return (text or type(error).__name__).rstrip(".")


def _open(path: Path) -> InputContainer:
    """Open a container, or raise a `DecodeError` that says why it cannot be opened."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe would block forever
            raise DecodeError("cannot be read: it is a pipe or device, not a regular file")
        with path.open("rb") as file:
            if not file.read(1):
                raise DecodeError("the file is empty (0 bytes)")
    except OSError as error:
        raise DecodeError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        return _container(path)
    except av.FFmpegError as error:
        name, detail = _failure_message(path)
        if detail.startswith(_REFUSED):
            raise DecodeError(
                f"not a video container: FFmpeg identifies it as `{name}`; playlists, scripts, "
                "images and devices are not opened",
                hint="if it is a video in a rare container, remux it to MP4 or Matroska",
            ) from error
        raise DecodeError(
            f"does not open as a video: {error_text(error)}{f'; {detail}' if detail else ''}"
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


def _failure_message(path: Path) -> tuple[str, str]:
    """Return which part of FFmpeg reports that a file does not open, and its message; or empty.

    The file is opened a second time, because capturing messages affects all threads.
    """
    with _CAPTURE_LOCK, _captured_messages() as logs, suppress(av.FFmpegError):
        _container(path).close()
    messages = [(name, message.splitlines()[0].strip(" .")) for _, name, message in logs]
    details = [one for one in messages if one[1] not in _UNINFORMATIVE]
    return details[-1] if details else ("", "")


def _video_stream(container: InputContainer) -> VideoStream:
    """Return the stream that a player would show, never cover art or thumbnails."""
    moving = [s for s in container.streams.video if not s.disposition & _STILL]
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
def _captured_messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collect FFmpeg's error messages, which give the real reason; PyAV silences them otherwise."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    # Messages from other threads are discarded. The handler stays: they may arrive late.
    logging.getLogger("libav").addHandler(_DISCARD)
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or a second file with the same fault gets no message
    try:
        with av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
