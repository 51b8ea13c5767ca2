"""`read_segments`: many segments of one video in one pass, however they overlap.

Every frame is decoded and converted once, and what a store holds of it is the same whichever other
segments are read: vectors of an encoding depend on the frames since the last even second and the
one before, no others, and fields are joined with the frames around them, inside the segment or not.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from tatscli.errors import DecodeError
from tatscli.video.camera import Camera
from tatscli.video.damage import damage
from tatscli.video.decode import Limits, Segment, StrPath
from tatscli.video.decoded import Decoded
from tatscli.video.frames import Reading, StoredFrame, stored_frames
from tatscli.video.origin import Wanted, final_origin
from tatscli.video.reader import VideoReader

_PERIOD = 2.0  # seconds; shorter ones cost encoders, longer ones frames that nobody stores

MakeSink = Callable[[int], AbstractContextManager[Callable[[StoredFrame], None]]]
"""Begins to take the frames of a segment, by its index; what was taken before is of no use."""


def read_segments(
    path: StrPath,
    segments: Sequence[Segment],
    make_sink: MakeSink,
    *,
    motion: Wanted,
    short_side: int | None,
    motion_cell: int,
    camera: Camera = "none",
    pictures: bool = True,
    limits: Limits | None = None,
) -> Iterator[tuple[int, Reading | None]]:
    """Hand the frames of segments to their sinks and yield the index of each that has ended.

    Args:
        path: A file FFmpeg can read.
        segments: In seconds, ascending by their starts.
        make_sink: Takes the frames of one segment.
        motion: Whose vectors; the first frame of a segment gets none of an encoding.
        short_side: As for `read_frames`, like what follows.
        motion_cell: Side of a cell of the motion field.
        camera: Model of global motion.
        pictures: Whether frames come with pictures.
        limits: What is refused.

    Yields:
        With its index what a segment has shown; None where this pass cannot give it: no frame lies
        in it, it is too long, its pictures are not of the kind that the pass began with, or the
        codec's vectors turned out to be unusable. It has to be read by itself.

    Raises:
        DecodeError: The pass cannot go on; segments without a result have to be read by themselves.
    """
    limits = limits or Limits()
    again: dict[int, str] = {}

    def one_pass(wanted: Wanted, chosen: Sequence[int]) -> Iterator[tuple[int, Reading | None]]:
        reader = _Pass(path, [segments[index] for index in chosen], wanted, pictures, limits)
        frames = stored_frames(
            reader,
            short_side=short_side,
            motion_cell=motion_cell,
            camera=camera,
            pictures=pictures,
            period=_PERIOD,
        )
        for index, reading in _dealt_out(reader, frames, chosen, segments, make_sink, limits):
            if reader.wrong_times and len(segments) > 1:  # perhaps not this segment's
                reading = None
            if wanted == "auto":
                why = _why_encode(reader, reading, alone=len(segments) == 1)
                if why is not None:
                    again[index] = why
                    continue
            yield index, reading

    yield from one_pass(motion, range(len(segments)))
    if again:
        for index, reading in one_pass("reencode", sorted(again)):
            if reading is not None:
                origin = replace(reading.origin, why=again[index])
                reading = replace(reading, origin=origin)
            yield index, reading


def _why_encode(reader: _Pass, reading: Reading | None, *, alone: bool) -> str | None:
    """Return why a segment has to be read again with vectors of an encoding; None if it has not.

    A segment is judged by its own frames: where others share its pass, what rules the codec's
    vectors out may have come before it.
    """
    if reading is None:
        return reader.ruled_out if alone else None
    none = reading.origin.kind == "none" and len(reading.times) > 1
    return reading.origin.why if none else None


class _Mark(NamedTuple):
    """What a decoded frame says of itself, and the damage before it."""

    size: tuple[int, int]
    pixel_format: str
    flagged: bool
    unusable: bool
    errors: Counter[str]
    errors_before_key: Counter[str]


class _Pass(VideoReader):
    """One pass over the frames that segments need, with their marks in the same order.

    Attributes:
        marks: Of the frames that were yielded and not yet dealt out.
        errors: What could not be decoded so far.
        ruled_out: Why the codec's vectors cannot be used after all, once that is known.
        fields_found: Whether the frame that comes next was woven from two fields.
    """

    def __init__(
        self,
        path: StrPath,
        segments: Sequence[Segment],
        motion: Wanted,
        pictures: bool,
        limits: Limits,
    ) -> None:
        ends = [math.inf if one.end is None else one.end for one in segments]
        end = max(ends)
        whole = Segment(_lead(segments[0].start), None if end == math.inf else end)
        super().__init__(
            path,
            motion=motion,
            pictures=pictures,
            segment=whole,
            neighbours=True,
            limits=Limits(pixels=limits.pixels),  # lengths are those of each segment
        )
        self.marks: deque[_Mark] = deque()
        self.errors = Counter[str]()
        self.ruled_out: str | None = None
        self.fields_found = False
        self._needed = deque((one.start, stop) for one, stop in zip(segments, ends, strict=True))
        self._until = -math.inf

    def __iter__(self) -> Iterator[Decoded]:
        """Yield the frames from the beginning of a period to the end of a segment, with two before
        and one after; the others are decoded and nothing else."""
        before_key = Counter[str]()
        held = deque[tuple[Decoded, _Mark]](maxlen=2)
        follows = False
        for item in super().__iter__():
            frame = item.frame
            if self._errors != self.errors:
                self.errors = self._errors.copy()
            if frame.key_frame:
                before_key = self.errors
            self.ruled_out = self.ruled_out or item.unusable
            mark = _Mark(
                self.crop_of(frame).size(frame.width, frame.height),
                frame.format.name,
                bool(frame.interlaced_frame),
                item.unusable is not None,
                self.errors,
                before_key,
            )
            if self._needs(item.time - self.begin):
                while held:
                    before, mark_before = held.popleft()
                    self.marks.append(mark_before)
                    yield before
                follows = True
            elif follows:
                follows = False
            else:
                held.append((item, mark))
                continue
            self.marks.append(mark)
            yield item
        self.errors = self._errors

    @property
    def wrong_times(self) -> bool:
        """Whether timestamps had to be replaced so far."""
        return self._clock.replaced > 0

    def found_fields(self) -> None:
        """Take note of it for the segments that hold the frame."""
        native = self.origin.kind == "native"
        super().found_fields()
        self.fields_found = True
        if native and self.origin.kind != "native":
            self.ruled_out = self.origin.why

    def _needs(self, time: float) -> bool:
        """Whether the frame at a time is part of a segment or leads up to one; times ascend."""
        while self._needed:
            start, end = self._needed[0]
            if time < (_lead(start) if self.origin.kind == "reencode" else start):
                break
            self._until = max(self._until, end)
            self._needed.popleft()
        return time < self._until


def _lead(start: float) -> float:
    """Return where the encoder must begin so that a segment gets its vectors."""
    return start // _PERIOD * _PERIOD


@dataclass(slots=True)
class _Open:
    """A segment that is being read."""

    index: int
    segment: Segment
    take: Callable[[StoredFrame], None]
    files: ExitStack
    begun: _Mark
    times: list[float] = field(default_factory=list)
    valid: list[bool] = field(default_factory=list)
    interlaced: bool = False

    def add(self, frame: StoredFrame, mark: _Mark, reader: _Pass, *, woven: bool) -> None:
        """Take a frame; the first has no vectors where they are those of an encoding."""
        if reader.origin.kind == "reencode" and not self.times:
            frame = replace(frame, motion=np.zeros_like(frame.motion), valid=False)
        guessed = reader.codec == "h264" and not self.times
        self.interlaced |= woven or reader.all_interlaced or (mark.flagged and not guessed)
        self.take(frame)
        self.times.append(frame.time)
        self.valid.append(frame.valid)

    def exceeds(self, limits: Limits) -> bool:
        """Whether it has become too long."""
        try:
            limits.check_length(len(self.times), self.times[-1] - self.times[0])
        except DecodeError:
            return True
        return False


def _dealt_out(
    reader: _Pass,
    frames: Iterator[StoredFrame],
    chosen: Sequence[int],
    segments: Sequence[Segment],
    make_sink: MakeSink,
    limits: Limits,
) -> Iterator[tuple[int, Reading | None]]:
    """Hand every frame to the segments it lies in."""
    waiting = deque((index, segments[index]) for index in chosen)
    active: list[_Open] = []
    size = (0, 0)
    errors = Counter[str]()
    with ExitStack() as everything:
        for frame in frames:
            mark, time = reader.marks.popleft(), frame.time - reader.begin
            woven, reader.fields_found = reader.fields_found, False
            errors, size = mark.errors, (frame.width, frame.height)
            for one in [one for one in active if _ended(one.segment, time)]:
                active.remove(one)
                yield one.index, _closed(one, reader, size, errors, cut=False)
            if reader.ruled_out is not None and (mark.unusable or woven):
                break
            while waiting and waiting[0][1].start <= time:
                index, segment = waiting.popleft()
                if _ended(segment, time) or not _alike(mark, reader):
                    yield index, None
                    continue
                files = everything.enter_context(ExitStack())
                take = files.enter_context(make_sink(index))
                active.append(_Open(index, segment, take, files, mark))
            for one in list(active):
                one.add(frame, mark, reader, woven=woven)
                if one.exceeds(limits):
                    active.remove(one)
                    one.files.close()
                    yield one.index, None
        for one in active:
            cut = one.segment.end is not None
            done = reader.ruled_out is None
            yield one.index, _closed(one, reader, size, reader.errors, cut=cut) if done else None
        for index, _ in waiting:
            yield index, None


def _ended(segment: Segment, time: float) -> bool:
    return segment.end is not None and time >= segment.end


def _alike(mark: _Mark, reader: VideoReader) -> bool:
    """Whether a frame is of the kind that the pass began with, which decides size and format."""
    return mark.size == reader.size and mark.pixel_format == reader.pixel_format


def _closed(
    one: _Open, reader: _Pass, size: tuple[int, int], errors: Counter[str], *, cut: bool
) -> Reading:
    """End a segment and return what it has shown; damage counts from the key frame before it."""
    one.files.close()
    facts = copy(reader)
    broken = damage(errors - one.begun.errors_before_key)
    facts.problem, facts.cut, facts.damaged = reader.noted(broken), cut, broken is not None
    facts.interlaced = one.interlaced
    origin = final_origin(reader.origin, frames=len(one.times), moving=sum(one.valid))
    return Reading(facts, origin, one.times, one.valid, *size)
