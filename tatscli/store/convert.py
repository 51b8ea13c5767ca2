"""What a worker does with one video: decode it into a spool, or only see whether it decodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tatscli.errors import DecodeError
from tatscli.store.schema import Settings
from tatscli.store.shards import Spool, checksum
from tatscli.video.decode import Limits, Segment
from tatscli.video.encode import JpegEncoder
from tatscli.video.field import grid_size
from tatscli.video.frames import StoredFrame, read_whole
from tatscli.video.origin import Wanted
from tatscli.video.reader import VideoReader


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
    """Convert one video; never raises, so that a bad file is a row and not the end of the run."""
    try:
        return _check(job) if job.spool is None else _convert(job, job.spool)
    except DecodeError as error:
        result = Converted(reason=error.message)
    except OSError as error:  # reading errors are decode errors: this is the store's disk
        result = Converted(
            trouble=f"cannot write `{error.filename or job.spool}`: {error.strerror}"
        )
    except Exception as error:
        result = Converted(reason=f"unexpected {type(error).__name__}: {error}")
    if job.spool is not None:
        for path in _spool_files(job.spool):
            path.unlink(missing_ok=True)
    return result


def _check(job: Job) -> Converted:
    reader = VideoReader(job.path, segment=job.segment, limits=job.limits)
    return Converted(facts=_facts(job, reader, [item.time for item in reader]))


def _convert(job: Job, stem: Path) -> Converted:
    """Decode a video into files, for the shard to take."""
    settings = job.settings
    pictures = settings.frames == "jpeg"
    image_path, motion_path = _spool_files(stem)
    ends: list[int] = []

    def open_video(motion: Wanted) -> VideoReader:
        return VideoReader(
            job.path, motion=motion, pictures=pictures, segment=job.segment, limits=job.limits
        )

    @contextmanager
    def spooling() -> Iterator[Callable[[StoredFrame], None]]:
        encode = JpegEncoder(settings.quality)
        ends[:] = [0]
        with ExitStack() as files:
            motion = files.enter_context(motion_path.open("wb"))
            images = files.enter_context(image_path.open("wb")) if pictures else None

            def take(frame: StoredFrame) -> None:
                motion.write(frame.motion.astype(np.float16).tobytes())
                if images is not None and frame.picture is not None:
                    ends.append(ends[-1] + images.write(encode(frame.picture)))

            yield take

    reading = read_whole(
        open_video,
        spooling,
        motion=settings.motion,
        short_side=settings.short_side,
        motion_cell=settings.motion_cell,
        camera=settings.camera,
        pictures=pictures,
    )
    grid = grid_size(reading.width, reading.height, settings.motion_cell)
    spool = Spool(
        jpeg=image_path if pictures else None,
        motion=motion_path,
        motion_shape=(len(reading.times), *grid, 2),
        offsets=np.array(ends, np.int64) if pictures else None,
        times=np.array(reading.times, np.float64),
        valid=np.array(reading.valid, bool),
    )
    facts = _facts(job, reading.reader, reading.times)
    facts |= {"width": reading.width, "height": reading.height, "checksum": checksum(spool)}
    facts |= {
        "motion": reading.origin.kind,
        "motion_why": reading.origin.why,
        "moving": sum(reading.valid),
    }
    return Converted(facts=facts, spool=spool)


def _facts(job: Job, reader: VideoReader, times: list[float]) -> dict[str, Any]:
    """Return the fields of the manifest row that reading a whole file reveals."""
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
        "warning": reader.problem,
    }
    segment = job.segment
    if segment is not None:
        seconds = segment.unit == "seconds"
        facts["start"] = segment.start if seconds else times[0] - reader.begin
        facts["end"] = segment.end if seconds else times[-1] + step - reader.begin
    return facts


def _spool_files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".jpeg"), stem.with_suffix(".motion")
