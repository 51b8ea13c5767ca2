"""What a worker does with one video: decode it into a spool, or only see whether it decodes."""

from __future__ import annotations

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
from tatscli.video.frames import stored_frames
from tatscli.video.origin import Origin, Wanted, settled, why_anew
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
    settings = job.settings
    converted, origin = _spool(job, stem, settings.motion)
    facts = converted.facts or {}
    why = why_anew(origin, frames=facts["frames"], interlaced=facts["interlaced"])
    if settings.motion == "auto" and why is not None:
        converted, _ = _spool(job, stem, "reencode")
        facts = converted.facts or {}
        facts["motion_why"] = why
    return converted


def _spool(job: Job, stem: Path, motion: Wanted) -> tuple[Converted, Origin]:
    """Decode a video into files, for the shard to take; say whose vectors it got."""
    settings = job.settings
    pictures = settings.frames == "jpeg"
    reader = VideoReader(
        job.path, motion=motion, pictures=pictures, segment=job.segment, limits=job.limits
    )
    encode = JpegEncoder(settings.quality)
    times: list[float] = []
    valid: list[bool] = []
    ends = [0]
    image_path, motion_path = _spool_files(stem)
    with image_path.open("wb") as image_file, motion_path.open("wb") as motion_file:
        for frame in stored_frames(
            reader,
            short_side=settings.short_side,
            motion_cell=settings.motion_cell,
            camera=settings.camera,
            pictures=pictures,
        ):
            if frame.picture is not None:
                ends.append(ends[-1] + image_file.write(encode(frame.picture)))
            motion_file.write(frame.motion.astype(np.float16).tobytes())
            times.append(frame.time)
            valid.append(frame.valid)
    grid = grid_size(frame.width, frame.height, settings.motion_cell)
    spool = Spool(
        jpeg=image_path if pictures else None,
        motion=motion_path,
        motion_shape=(len(times), *grid, 2),
        offsets=np.array(ends, np.int64) if pictures else None,
        times=np.array(times, np.float64),
        valid=np.array(valid, bool),
    )
    facts = _facts(job, reader, times)
    facts |= {"width": frame.width, "height": frame.height, "checksum": checksum(spool)}
    moving = sum(valid)
    origin = settled(reader.origin, frames=len(times), moving=moving)
    facts |= {"motion": origin.kind, "motion_why": origin.why, "moving": moving}
    return Converted(facts=facts, spool=spool), origin


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
