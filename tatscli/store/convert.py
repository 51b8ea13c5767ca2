"""What a worker does with one video: decode it into a spool, or only see whether it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tatscli.errors import DecodeError
from tatscli.store.schema import Settings
from tatscli.store.shards import Spool
from tatscli.video.decode import Limits, Segment, VideoReader
from tatscli.video.frames import stored_frames
from tatscli.video.motion import grid_size


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
    limits: Limits = Limits()


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
    reader = VideoReader(job.path)
    return Converted(facts=_facts(reader, [time for time, _ in reader]))


def _convert(job: Job, stem: Path) -> Converted:
    settings = job.settings
    reader = VideoReader(job.path)
    times: list[float] = []
    valid: list[bool] = []
    ends = [0]
    images, motion = _spool_files(stem)
    with images.open("wb") as image_file, motion.open("wb") as motion_file:
        for frame in stored_frames(
            reader, short_side=settings.short_side, motion_cell=settings.motion_cell
        ):
            ends.append(ends[-1] + image_file.write(frame.jpeg(settings.quality)))
            motion_file.write(frame.motion.astype(np.float16).tobytes())
            times.append(frame.time)
            valid.append(frame.valid)
    facts = _facts(reader, times)
    facts |= {"width": frame.width, "height": frame.height}
    facts |= {"motion": "native" if any(valid) else "none", "moving": sum(valid)}
    spool = Spool(
        jpeg=images,
        motion=motion,
        motion_shape=(len(times), *grid_size(frame.width, frame.height, settings.motion_cell), 2),
        offsets=np.array(ends, np.int64),
        times=np.array(times, np.float64),
        valid=np.array(valid, bool),
    )
    return Converted(facts=facts, spool=spool)


def _facts(reader: VideoReader, times: list[float]) -> dict[str, Any]:
    """Return the fields of the manifest row that reading a whole file reveals."""
    span = times[-1] - times[0]
    step = span / (len(times) - 1) if len(times) > 1 else reader.step
    width, height = reader.size
    return {
        "codec": reader.codec,
        "fps": round(1 / step, 4),
        "frames": len(times),
        "duration": round(span + step, 6),
        "source_width": width,
        "source_height": height,
        "rotation": reader.orientation.rotation,
        "mirrored": reader.orientation.mirrored,
        "warning": reader.problem,
    }


def _spool_files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".jpeg"), stem.with_suffix(".motion")
