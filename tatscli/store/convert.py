"""What a worker does with videos: decode them into spools, or only see whether they decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from tatscli.errors import DecodeError
from tatscli.store.completeness import completeness
from tatscli.store.schema import Settings
from tatscli.store.shards import Spool, checksum
from tatscli.video.decode import Limits, Segment
from tatscli.video.encode import JpegEncoder
from tatscli.video.field import grid_size
from tatscli.video.frames import Reading, StoredFrame, read_whole
from tatscli.video.origin import Wanted
from tatscli.video.reader import VideoReader
from tatscli.video.segments import read_segments


@dataclass(frozen=True, slots=True)
class Job:
    """One video to convert.

    Attributes:
        path: The source.
        spool: Where its frames go: stem of two files; None to decode only.
        settings: How to convert it.
        segment: The part of the file that is asked for; None is all of it.
        limits: What is refused.
    """

    path: Path
    spool: Path | None
    settings: Settings
    segment: Segment | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of a video.

    Attributes:
        reason: Why it failed; None if it is ok.
        facts: Fields of its manifest row.
        spool: Its frames, unless it failed or was only checked.
        trouble: Why the store cannot be written; the whole run has to stop.
    """

    reason: str | None = None
    facts: dict[str, Any] | None = None
    spool: Spool | None = None
    trouble: str | None = None


def convert(job: Job) -> Converted:
    """Convert one video or segment; never raises, so that a bad file is a row of the manifest."""
    (result,) = convert_together([job])
    return result


def convert_together(jobs: Sequence[Job]) -> Iterator[Converted]:
    """Convert videos and yield what became of each, in order; never raises.

    Args:
        jobs: One, or segments of one file in seconds, ascending by their starts, with the same
            settings and limits.
    """
    following = 0
    early: dict[int, Converted] = {}
    try:
        for index, result in _in_one_pass(jobs) if len(jobs) > 1 else ():
            early[index] = result
            while following in early:
                yield early.pop(following)
                following += 1
        for index in range(following, len(jobs)):
            yield early.pop(index) if index in early else _by_itself(jobs[index])
            following += 1
    except OSError as error:  # reading errors are decode errors: this is the store's disk
        for job in jobs[following:]:
            name = error.filename or job.spool
            yield Converted(trouble=f"cannot write `{name}`: {error.strerror}")


def _in_one_pass(jobs: Sequence[Job]) -> Iterator[tuple[int, Converted]]:
    """Convert segments in one pass; those without a result have to be converted by themselves."""
    settings, checked = jobs[0].settings, jobs[0].spool is None
    encode = _LastJpeg(settings.quality)
    sinks = [_Sink(job, encode) for job in jobs]
    outcomes = read_segments(
        jobs[0].path,
        [job.segment for job in jobs if job.segment is not None],
        lambda index: sinks[index].open(),
        motion="none" if checked else settings.motion,
        short_side=settings.short_side,
        motion_cell=settings.motion_cell,
        camera=settings.camera,
        pictures=not checked and settings.frames == "jpeg",
        limits=jobs[0].limits,
    )
    try:
        for index, reading in outcomes:
            if reading is not None:
                yield index, _outcome(jobs[index], partial(sinks[index].result, reading))
    except OSError:
        raise
    except Exception:  # one of the segments is to blame: by itself, it will say so
        return


def _by_itself(job: Job) -> Converted:
    if job.segment is not None and job.segment.unit == "seconds":
        for _, result in _in_one_pass([job]):
            return result
    return _outcome(job, partial(_read, job))


def _outcome(job: Job, make: Callable[[], Converted]) -> Converted:
    """Return a result, or why there is none; then without its files."""
    try:
        return make()
    except DecodeError as error:
        result = Converted(reason=error.message)
    except OSError:
        raise
    except Exception as error:
        result = Converted(reason=f"unexpected {type(error).__name__}: {error}")
    if job.spool is not None:
        for path in _spool_files(job.spool):
            path.unlink(missing_ok=True)
    return result


def _read(job: Job) -> Converted:
    """Read a video from beginning to end."""
    settings, sink = job.settings, _Sink(job, _LastJpeg(job.settings.quality))
    pictures = settings.frames == "jpeg"

    def open_video(motion: Wanted) -> VideoReader:
        return VideoReader(
            job.path, motion=motion, pictures=pictures, segment=job.segment, limits=job.limits
        )

    if job.spool is None:
        reader = VideoReader(job.path, segment=job.segment, limits=job.limits)
        return Converted(facts=_facts(job, reader, [item.time for item in reader]))
    reading = read_whole(
        open_video,
        sink.open,
        motion=settings.motion,
        short_side=settings.short_side,
        motion_cell=settings.motion_cell,
        camera=settings.camera,
        pictures=pictures,
    )
    return sink.result(reading)


class _LastJpeg:
    """Encodes pictures, and hands out the last one again where several segments hold it."""

    def __init__(self, quality: int) -> None:
        self._encode = JpegEncoder(quality)
        self._picture: VideoFrame | None = None
        self._data = b""

    def __call__(self, picture: VideoFrame) -> bytes:
        if picture is not self._picture:
            self._picture, self._data = picture, self._encode(picture)
        return self._data


class _Sink:
    """Takes the frames of one job into its files."""

    def __init__(self, job: Job, encode: _LastJpeg) -> None:
        self._job, self._encode = job, encode
        self._ends: list[int] = []

    @contextmanager
    def open(self) -> Iterator[Callable[[StoredFrame], None]]:
        """Begin; what was taken before is dropped."""
        self._ends, stem = [0], self._job.spool
        with ExitStack() as files:
            if stem is None:
                yield lambda frame: None
                return
            image_path, motion_path = _spool_files(stem)
            pictures = self._job.settings.frames == "jpeg"
            motion = files.enter_context(motion_path.open("wb"))
            images = files.enter_context(image_path.open("wb")) if pictures else None

            def take(frame: StoredFrame) -> None:
                motion.write(frame.motion.astype(np.float16).tobytes())
                if images is not None and frame.picture is not None:
                    self._ends.append(self._ends[-1] + images.write(self._encode(frame.picture)))

            yield take

    def result(self, reading: Reading) -> Converted:
        """Return what has come of the frames taken.

        Raises:
            DecodeError: Too many are missing.
        """
        job, settings, times = self._job, self._job.settings, reading.times
        facts = _facts(job, reading.reader, times)
        if job.spool is None:
            return Converted(facts=facts)
        image_path, motion_path = _spool_files(job.spool)
        pictures = settings.frames == "jpeg"
        grid = grid_size(reading.width, reading.height, settings.motion_cell)
        spool = Spool(
            jpeg=image_path if pictures else None,
            motion=motion_path,
            motion_shape=(len(times), *grid, 2),
            offsets=np.array(self._ends, np.int64) if pictures else None,
            times=np.array(times, np.float64),
            valid=np.array(reading.valid, bool),
        )
        facts |= {"width": reading.width, "height": reading.height, "checksum": checksum(spool)}
        facts |= {
            "motion": reading.origin.kind,
            "motion_why": reading.origin.why,
            "moving": sum(reading.valid),
        }
        return Converted(facts=facts, spool=spool)


def _facts(job: Job, reader: VideoReader, times: list[float]) -> dict[str, Any]:
    """Return the fields of the manifest row that reading a whole file reveals.

    Raises:
        DecodeError: Too many frames are missing.
    """
    missing = completeness(reader, times, job.segment, job.limits.min_share)
    span = times[-1] - times[0]
    step = span / (len(times) - 1) if len(times) > 1 else reader.step
    width, height = reader.size
    facts = {
        "bytes": reader.bytes,
        "codec": reader.codec,
        "pixel_format": reader.pixel_format,
        "interlaced": reader.interlaced,
        "aspect": round(reader.aspect, 6),
        "fps": round(1 / step, 4),
        "frames": len(times),
        "duration": round(span + step, 6),
        "source_width": width,
        "source_height": height,
        "rotation": reader.orientation.rotation,
        "mirrored": reader.orientation.mirrored,
        "warning": "; ".join(filter(None, [reader.problem, missing])) or None,
    }
    segment = job.segment
    if segment is not None:
        seconds = segment.unit == "seconds"
        facts["start"] = segment.start if seconds else times[0] - reader.begin
        facts["end"] = segment.end if seconds else times[-1] + step - reader.begin
    return facts


def _spool_files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".jpeg"), stem.with_suffix(".motion")
