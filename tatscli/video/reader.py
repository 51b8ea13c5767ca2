"""`VideoReader`: one pass over the pictures of a file, on one thread, with its motion vectors."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from tatscli.errors import DecodeError
from tatscli.video.clock import Clock
from tatscli.video.crop import WHOLE, Crop, container_crop
from tatscli.video.damage import damage, listed
from tatscli.video.decode import (
    DEFAULT_FPS,
    Limits,
    Segment,
    StrPath,
    error_text,
    header_seconds,
    is_raw,
    may_seek,
    nominal_fps,
    open_video,
    pixel_aspect,
)
from tatscli.video.decoded import Decoded, distinct, with_distances
from tatscli.video.descriptions import left_out
from tatscli.video.h264 import References
from tatscli.video.orientation import UPRIGHT, Orientation, frame_orientation
from tatscli.video.origin import (
    FIELDS,
    SEPARATE_FIELDS,
    Origin,
    Wanted,
    choose_origin,
    container_interlaced,
    is_disposable,
)
from tatscli.video.vector_check import VectorCheck

_LEAD = 1.0  # seconds before a segment to jump to: key frames are found by decoding time

_Judged = tuple[VideoFrame, str | None, bool]
"""A frame, why the codec's vectors cannot be used from it on, whether it lies between anchors."""


class VideoReader:
    """One pass over the pictures of a file: decoded frames, upright direction, presentation times.

    A damaged packet is skipped, as players do, and remembered in `problem`; only a file without any
    frame is an error.

    Args:
        path: A file FFmpeg can read.
        motion: Whose vectors are wanted; the codec's own then come with the frames.
        pictures: Whether the pictures matter. Without them native vectors come faster, and the
            pictures are `spoilt`.
        segment: The part of the video that is wanted; None is all of it.
        neighbours: Whether the last two frames before a segment of seconds come too, and the first
            after it.
        limits: What is refused.

    Attributes:
        codec: FFmpeg's name of the codec; known from the first frame on, like all that follows.
        bytes: Size of the file.
        begin: Presentation time at which players begin to count, and segments too.
        crop: What the container says is not shown of a decoded frame.
        size: Width and height of what is shown of the first frame, before it is turned upright.
        pixel_format: FFmpeg's name of its pixel format.
        aspect: Width of a decoded pixel by its height.
        interlaced: Whether any picture so far is woven from two fields.
        all_interlaced: Whether all are, by the container's word; the codec cannot say it.
        maybe_interlaced: Whether some may be though their flags deny it: H.264 whose header allows
            fields flags those frames alone that are coded as fields.
        orientation: How frames have to be turned.
        origin: Whose vectors frames get; `auto` changes from the codec's own to an encoding at the
            first frame that rules the codec's own out.
        pictures: As given.
        spoilt: Whether pictures are decoded only as far as the vectors need.
        step: Seconds between two frames by the header, where time stamps are missing.
        seconds: Length of the file by the header; None where it tells none.
        announced: Frames of the file by the header; 0 where it tells none.
        length: Seconds of the video stream by the header; None where it tells none.
        cut: Whether no frame has come from after the segment, once the iteration has ended.
        problem: What went wrong on the way, once the iteration has ended; None if nothing did.
        damaged: Whether frames are missing because of it.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        motion: Wanted = "none",
        pictures: bool = True,
        segment: Segment | None = None,
        neighbours: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.path = Path(path)
        self.codec: str | None = None
        self.bytes = 0
        self.begin = 0.0
        self.crop, self.size = WHOLE, (0, 0)
        self.pixel_format: str | None = None
        self.aspect = 1.0
        self.interlaced = self.all_interlaced = self.maybe_interlaced = False
        self.orientation: Orientation = UPRIGHT
        self.origin = Origin("none", "not opened yet")
        self.pictures = pictures
        self.spoilt = self.cut = self.damaged = False
        self.step, self.announced = 0.0, 0
        self.seconds: float | None = None
        self.length: float | None = None
        self.problem: str | None = None
        self._motion = motion
        self._segment = segment
        self._neighbours = neighbours
        self._limits = limits or Limits()
        self._errors: Counter[str] = Counter()
        self._encrypted = False
        self._track = 0  # number of the track in an MP4 file
        self._check: VectorCheck | None = None
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
            frame = item.frame
            if not count:
                self._describe(frame)
                first = item.time
            if item.unusable and self.origin.kind == "native":
                later = ", from a later frame on" if count else ""
                self.origin = Origin("reencode", item.unusable + later)
            if frame.interlaced_frame and (count or self.codec != "h264"):
                self.interlaced = True
            count += 1
            self._limits.check_picture(frame.width, frame.height)
            self._limits.check_length(count, item.time - first)
            yield item
        if not count:
            nothing = "the segment lies outside" if self._outside else "there is no picture data"
            locked = "it is encrypted" if self._encrypted else None
            reasons = listed(self._errors)
            raise DecodeError(f"no frame can be decoded: {locked or reasons or nothing}")
        if count == 1:  # the first H.264 frame is only a guess of FFmpeg's, but there is no other
            self.interlaced |= bool(frame.interlaced_frame)
        broken = damage(self._errors)
        if broken is None and self._segment is None and self._track and count < self.announced:
            broken = left_out(self.path, self._track, self.codec)
        self.damaged = broken is not None
        if self._clock.replaced:
            self.length = None  # it comes from the same timestamps
        self.problem = self.noted(broken)

    def noted(self, broken: str | None) -> str | None:
        """Add to what is damaged what is known of wrong timestamps so far."""
        rate = f"the stream tells no frame rate, {DEFAULT_FPS:g} fps were assumed"
        rate = rate if self._rate_is_assumed else ""
        return "; ".join(filter(None, [broken, self._clock.problem, rate])) or None

    def crop_of(self, frame: VideoFrame) -> Crop:
        """Return what is not shown of a decoded frame: only the first frame's size is cropped."""
        size = self.crop.size(frame.width, frame.height)
        return self.crop if size == self.size else WHOLE

    def found_fields(self) -> None:
        """Take note that the picture of the last frame turned out to be woven from two fields."""
        self.interlaced = True
        if self._motion == "auto" and self.origin.kind == "native":
            self.origin = Origin("reencode", FIELDS)

    def _describe(self, frame: VideoFrame) -> None:
        self.size = self.crop.size(frame.width, frame.height)
        self.pixel_format = frame.format.name
        self.orientation = frame_orientation(frame)
        if frame.interlaced_frame and self.codec in SEPARATE_FIELDS:
            self.aspect /= 2  # each line stands for two

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
            self.cut = segment.end is not None
        else:
            jump = segment.start - _LEAD
            items = self._frames(jump if jump > 0 else None)
            first = next(items, None)
            if jump > 0 and (first is None or first.time - self.begin > segment.start):
                items = self._frames(None)  # no index, or a wrong one
                first = next(items, None)
            end = math.inf if segment.end is None else segment.end
            before = deque[Decoded](maxlen=2 if self._neighbours else 0)
            for item in chain([first] if first else [], items):
                time = item.time - self.begin
                self._outside = not segment.start <= time < end
                if not self._outside:
                    yield from before
                    before.clear()
                    yield item
                elif time >= end:
                    if self._neighbours:
                        yield item
                    return
                else:
                    before.append(item)
            self.cut = segment.end is not None

    def _frames(self, jump: float | None) -> Iterator[Decoded]:
        """Yield the frames from a key frame before `jump` seconds on, or from the first on."""
        self._errors.clear()
        with open_video(self.path) as (container, stream):
            self._set_up(container, stream)
            if jump is not None and may_seek(self.path, container, stream):
                tick = stream.time_base or 1
                try:
                    container.seek(int((self.begin + jump) / tick), stream=stream)
                except av.FFmpegError:
                    return
            decoded = self._decode(container, stream)
            if self.codec == "mpeg4":
                decoded = distinct(decoded)
            timed = self._timed(decoded, jump)
            if self.origin.anchored:
                yield from with_distances(
                    (Decoded(time, frame, 1, 1, unusable), between)
                    for time, (frame, unusable, between) in timed
                )
            else:
                for time, (frame, unusable, _) in timed:
                    yield Decoded(time, frame, 1, 1, unusable)

    def _judged(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[float | None, _Judged]]:
        """Add the file's timestamp in seconds, and what is known of a frame when it is decoded."""
        check, tick = self._check, self._tick
        for frame in frames:
            time: float | None = frame.time
            if self._decoding_times:
                time = None if frame.dts is None else frame.dts * tick
            unusable = None if check is None else check.read_frame(frame)
            between = self._disposable or frame.pict_type == PictureType.B
            yield time, (frame, unusable, between)

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
        self.announced = stream.frames
        self.length = header_seconds(container, stream)
        self.crop = container_crop(self.path, container, stream)
        self.aspect = pixel_aspect(stream)
        self.interlaced = self.all_interlaced = container_interlaced(stream)
        header = context.extradata or b""
        self.maybe_interlaced = self.codec == "h264" and References(header).fields
        self._encrypted = "enc_key_id" in stream.metadata  # FFmpeg says so of WebM alone
        if container.format.name.startswith("mov,"):
            self._track = stream.id
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
        native = self.origin.kind == "native"
        self.spoilt = native and not (self.pictures or self.maybe_interlaced)
        if native:
            options["flags2"] = "+export_mvs"
        if self.spoilt:
            options |= {"skip_loop_filter": "all", "skip_idct": "all"}
        judged = native and self._motion == "auto"
        self._check = VectorCheck(self.codec, header) if judged else None
        context.options = options

    def _timed(
        self, frames: Iterable[VideoFrame], jump: float | None
    ) -> Iterator[tuple[float, _Judged]]:
        """Add the presentation times, and what is known of a frame when it is decoded."""
        judged = self._judged(frames)
        head = next(judged, None)
        if head is None or (jump is not None and head[0] is None):
            return  # without timestamps it is not known where a jump has led to
        self._clock = clock = Clock(self.step)
        timed = clock(chain([head], judged))
        first, frame = next(timed)
        if clock.moved > 0 and first - clock.moved - self.begin <= self.step:
            self.begin = first  # the wrong timestamp was also the file's first
        self.begin = min(self.begin, first)
        yield first, frame
        yield from timed

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
            if self._check is not None and packet is not None:
                self._check.read_packet(packet)
            try:
                yield from stream.decode(packet)
            except EOFError:
                return
            except av.FFmpegError as error:
                self._errors[error_text(error)] += 1
            if packet is None:
                return
