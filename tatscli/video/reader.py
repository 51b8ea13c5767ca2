"""`VideoReader`: one pass over the pictures of a file, on one thread, with its motion vectors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from tatscli.errors import DecodeError
from tatscli.video.clock import Clock
from tatscli.video.crop import WHOLE, Crop, container_crop
from tatscli.video.decode import (
    DEFAULT_FPS,
    Limits,
    Segment,
    StrPath,
    error_text,
    is_raw,
    may_seek,
    nominal_fps,
    open_video,
    pixel_aspect,
)
from tatscli.video.orientation import UPRIGHT, Orientation
from tatscli.video.origin import Origin, Wanted, choose_origin, is_disposable, is_interlaced

_LEAD = 1.0  # seconds before a segment to jump to: key frames are found by decoding time
_LONGEST_B_RUN = 64  # frames held until the anchor after them; no encoder makes as many


class Decoded(NamedTuple):
    """A decoded frame.

    Attributes:
        time: Presentation time in seconds, rising.
        frame: The picture, with the codec's vectors as side data where they are wanted.
        past: Frames since the picture its past vectors refer to; 1 where that is not known.
        future: Frames to the picture its future vectors refer to; 1 where that is not known.
    """

    time: float
    frame: VideoFrame
    past: int = 1
    future: int = 1


class VideoReader:
    """One pass over the pictures of a file: decoded frames, upright direction, presentation times.

    A damaged packet is skipped, as players do, and remembered in `problem`; only a file without any
    frame is an error.

    Args:
        path: A file FFmpeg can read.
        motion: Whose vectors are wanted; the codec's own then come with the frames.
        pictures: Whether the pictures matter. Without them native vectors come faster and the
            pictures are spoilt.
        segment: The part of the video that is wanted; None is all of it.
        limits: What is refused.

    Attributes:
        codec: FFmpeg's name of the codec; known from the first frame on, like all that follows.
        bytes: Size of the file.
        begin: Presentation time at which players begin to count, and segments too.
        crop: What the container says is not shown of a decoded frame.
        size: Width and height of what is shown of the first frame, before it is turned upright.
        pixel_format: FFmpeg's name of its pixel format.
        aspect: Width of a decoded pixel by its height.
        interlaced: Whether pictures are woven from two fields.
        orientation: How frames have to be turned.
        origin: Whose vectors the file gets.
        step: Seconds between two frames by the header, where time stamps are missing.
        seconds: Length of the file by the header; None where it tells none.
        problem: What went wrong on the way, once the iteration has ended; None if nothing did.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        motion: Wanted = "none",
        pictures: bool = True,
        segment: Segment | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.path = Path(path)
        self.codec: str | None = None
        self.bytes = 0
        self.begin = 0.0
        self.crop = WHOLE
        self.size = (0, 0)
        self.pixel_format: str | None = None
        self.aspect = 1.0
        self.interlaced = False
        self.orientation: Orientation = UPRIGHT
        self.origin = Origin("none", "not opened yet")
        self.step = 0.0
        self.seconds: float | None = None
        self.problem: str | None = None
        self._motion = motion
        self._pictures = pictures
        self._segment = segment
        self._limits = limits or Limits()
        self._errors: Counter[str] = Counter()
        self._encrypted = False
        self._disposable = False  # whether no picture is predicted from the last decoded one
        self._clock = Clock(self.step)
        self._decoding_times = False  # whether frames are timed by when they are decoded
        self._tick = 0.0
        self._rate_is_assumed = False
        self._outside = False  # whether a frame was decoded that the segment does not hold

    def __iter__(self) -> Iterator[Decoded]:
        """Yield the frames, or those of the segment, in the order of presentation.

        Raises:
            DecodeError: The file does not open, holds no video, exceeds the limits, or not one
                frame of it decodes.
        """
        count, first = 0, 0.0
        for item in self._chosen():
            if not count:
                self._describe(item.frame)
                first = item.time
            count += 1
            self._limits.check_picture(item.frame.width, item.frame.height)
            self._limits.check_length(count, item.time - first)
            yield item
        reasons = "; ".join(
            f"{why} ({times} {'times' if times > 1 else 'time'})"
            for why, times in self._errors.items()
        )
        if not count:
            nothing = "the segment lies outside" if self._outside else "there is no picture data"
            locked = "it is encrypted" if self._encrypted else None
            raise DecodeError(f"no frame can be decoded: {locked or reasons or nothing}")
        damage = f"damaged, some frames are missing: {reasons}" if reasons else None
        assumed = None
        if self._rate_is_assumed:
            assumed = f"the stream tells no frame rate, {DEFAULT_FPS:g} fps were assumed"
        self.problem = "; ".join(filter(None, [damage, self._clock.problem, assumed])) or None

    def crop_of(self, frame: VideoFrame) -> Crop:
        """Return what is not shown of a decoded frame: only the first frame's size is cropped."""
        size = self.crop.size(frame.width, frame.height)
        return self.crop if size == self.size else WHOLE

    def _describe(self, frame: VideoFrame) -> None:
        self.size = self.crop.size(frame.width, frame.height)
        self.pixel_format = frame.format.name
        self.orientation = frame_orientation(frame)
        self.interlaced |= bool(frame.interlaced_frame)

    def _chosen(self) -> Iterator[Decoded]:
        """Yield the frames of the segment."""
        segment = self._segment
        if segment is None:
            yield from self._frames(None)
        elif segment.unit == "frames":
            for index, item in enumerate(self._frames(None)):
                if segment.end is not None and index >= segment.end:
                    return
                self._outside = index < segment.start
                if not self._outside:
                    yield item
        else:
            jump = segment.start - _LEAD
            items = self._frames(jump if jump > 0 else None)
            first = next(items, None)
            if jump > 0 and (first is None or first.time - self.begin > segment.start):
                items = self._frames(None)  # no index, or a wrong one
                first = next(items, None)
            end = math.inf if segment.end is None else segment.end
            for item in chain([first] if first else [], items):
                time = item.time - self.begin
                self._outside = not segment.start <= time < end
                if not self._outside:
                    yield item
                elif time >= end:
                    return

    def _frames(self, jump: float | None) -> Iterator[Decoded]:
        """Yield the frames from a key frame before `jump` on, with the distances of references.

        Args:
            jump: Seconds after `begin`; None is the first frame.
        """
        self._errors.clear()
        with open_video(self.path) as (container, stream):
            self._set_up(container, stream)
            if jump is not None and not may_seek(self.path, container, stream):
                jump = None
            if jump is not None:
                try:
                    time = self.begin + jump
                    container.seek(int(time / (stream.time_base or 1)), stream=stream)
                except av.FFmpegError:
                    return
            frames = self._timed(self._decode(container, stream), jump)
            if not self.origin.anchored:
                for time, (frame, _) in frames:
                    yield Decoded(time, frame)
                return
            waiting: list[tuple[float, VideoFrame]] = []
            for time, (frame, disposable) in frames:
                between = frame.pict_type == PictureType.B or disposable
                if between and len(waiting) < _LONGEST_B_RUN:
                    waiting.append((time, frame))
                    continue
                yield from _between(waiting)
                yield Decoded(time, frame, past=len(waiting) + 1)
                waiting.clear()
            yield from _between(waiting)

    def _set_up(self, container: InputContainer, stream: VideoStream) -> None:
        """Learn what the header says, refuse what is too large, set the decoder's options."""
        context = stream.codec_context
        self.codec = context.codec.canonical_name
        self.bytes = container.size
        # In microseconds, rounded: one less, or the first frame might lie before the beginning.
        self.begin = max(0, (container.start_time or 0) - 1) / 1e6
        fps = nominal_fps(container, stream)
        self.step = 1 / (fps or DEFAULT_FPS)
        self._rate_is_assumed = fps is None and is_raw(container)
        self.seconds = container.duration / 1e6 if container.duration else None
        self.crop = container_crop(self.path, container, stream)
        self.aspect = pixel_aspect(stream)
        self.interlaced = is_interlaced(stream)
        self._encrypted = "enc_key_id" in stream.metadata  # FFmpeg says so of WebM alone
        self._limits.check_picture(context.width, context.height)
        if self._segment is None:
            length = container.duration or 0  # in FFmpeg's clock of containers: microseconds
            self._limits.check_length(stream.frames, length / 1e6)
        # AVI stores no presentation times; those that FFmpeg makes up are wrong with B-frames.
        self._decoding_times = container.format.name == "avi"
        self._tick = float(stream.time_base or 0)
        self.origin = choose_origin(stream, self._motion)
        # FFmpeg counts generous margins as well; this keeps a header that lies from all memory.
        options = {"max_pixels": str(4 * self._limits.pixels + (1 << 20))}
        if self.origin.kind == "native":
            options["flags2"] = "+export_mvs"
            if not self._pictures:
                options |= {"skip_loop_filter": "all", "skip_idct": "all"}
        context.options = options

    def _timed(
        self, frames: Iterator[VideoFrame], jump: float | None
    ) -> Iterator[tuple[float, tuple[VideoFrame, bool]]]:
        """Add the presentation times, and whether no picture is predicted from a frame."""
        stamped = ((self._timestamp(frame), (frame, self._disposable)) for frame in frames)
        head = next(stamped, None)
        if head is None or (jump is not None and head[0] is None):
            return  # without timestamps it is not known where a jump has led to
        self._clock = clock = Clock(self.step)
        timed = clock(chain([head], stamped))
        first, frame = next(timed)
        if clock.moved > 0 and first - clock.moved - self.begin <= self.step:
            self.begin = first  # the wrong timestamp was also the file's first
        self.begin = min(self.begin, first)
        yield first, frame
        yield from timed

    def _timestamp(self, frame: VideoFrame) -> float | None:
        """Return the file's timestamp of a frame in seconds."""
        if not self._decoding_times:
            return frame.time
        return None if frame.dts is None else frame.dts * self._tick

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV's, where a stream begins midway; it can go on from there
                packets = container.demux(stream)
                continue
            except av.FFmpegError as error:
                self._errors[error_text(error)] += 1
                packet = None  # the file breaks off: take what the decoder still holds
            if packet is not None and self.codec == "flv1":  # its decoder holds nothing back
                self._disposable = is_disposable(bytes(memoryview(packet)[:9]))
            try:
                yield from stream.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                self._errors[error_text(error)] += 1
            if packet is None:
                return


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Return how a decoded frame has to be turned to be upright."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if matrix is None else Orientation.from_matrix(bytes(matrix))


def _between(frames: list[tuple[float, VideoFrame]]) -> Iterator[Decoded]:
    """Yield the B-frames, or disposable P-frames, between two anchors."""
    for index, (time, frame) in enumerate(frames):
        yield Decoded(time, frame, past=index + 1, future=len(frames) - index)
