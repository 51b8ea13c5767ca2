"""Writing one video's motion to a safetensors file: its field, or every row of the codec."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tatscli.errors import DataError, DecodeError
from tatscli.tensors import Tensor, write_tensors
from tatscli.video.camera import Camera
from tatscli.video.field import grid_size
from tatscli.video.frames import StoredFrame, read_whole
from tatscli.video.motion import COLUMNS, vectors_of
from tatscli.video.origin import Origin, Wanted
from tatscli.video.reader import VideoReader


@dataclass(frozen=True, slots=True)
class Motion:
    """What was written.

    Attributes:
        frames: Frames of the file.
        moving: Frames with vectors.
        rows: Vectors; None for a field.
        origin: Source of the vectors, and the reason; `none` if no frame has any.
        warning: What is missing if the file is damaged.
    """

    frames: int
    moving: int
    rows: int | None
    origin: Origin
    warning: str | None


def write_rows(clip: Path, out: Path) -> Motion:
    """Write every vector of a file as its codec stores it.

    Tensors: `rows` (R, 10) int32 with the columns of `tatscli.video.motion.COLUMNS`, in
    presentation order and, within a frame, in FFmpeg's; `frame` (R,) int32, the frame index of each
    row; `types` (T,) uint8, the letter of each frame's type in ASCII; `times` (T,) float64,
    presentation times in seconds.

    Raises:
        DecodeError: The file does not decode.
        DataError: Its codec exports no vectors.
    """
    counts: list[int] = []
    types: list[int] = []
    times: list[float] = []
    reader = VideoReader(clip, motion="native", pictures=False)
    with _spool(out) as spool, _named(clip):
        with spool.open("wb") as file:
            for frame in vectors_of(reader):
                if reader.origin.kind == "none":
                    raise DataError(
                        f"`{clip}` has no rows to write: {reader.codec} exports no motion vectors",
                        "without `--raw`, a motion field is computed by re-encoding",
                    )
                file.write(frame.rows.tobytes())
                counts.append(len(frame.rows))
                types.append(ord(frame.type))
                times.append(frame.time)
        frame_R = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        total = len(frame_R)
        write_tensors(
            out,
            [
                Tensor.of("times", np.array(times, np.float64)),
                Tensor("rows", np.dtype("<i4"), (total, len(COLUMNS)), spool),
                Tensor.of("frame", frame_R),
                Tensor.of("types", np.array(types, np.uint8)),
            ],
            {
                "format": "tats-motion-rows",
                "columns": " ".join(COLUMNS),
                "codec": reader.codec or "",
            },
        )
    moving = sum(count > 0 for count in counts)
    return Motion(len(counts), moving, total, reader.origin, reader.problem)


def write_field(
    clip: Path,
    out: Path,
    *,
    motion: Wanted = "auto",
    camera: Camera = "none",
    motion_cell: int = 16,
    short_side: int | None = 256,
) -> Motion:
    """Write the motion field of a file, as a store would hold it.

    Tensors: `motion` (T, rows, columns, 2) float32, displacement of content in pixels of the
    stored picture per frame, x first; `valid` (T,) bool, frames with vectors; `times` (T,)
    float64, presentation times in seconds. The metadata hold picture size, cell size and the source
    of the vectors.

    Raises:
        DecodeError: The file does not decode.
    """

    def open_video(wanted: Wanted) -> VideoReader:
        return VideoReader(clip, motion=wanted, pictures=False)

    with _spool(out) as spool, _named(clip):

        @contextmanager
        def spooling() -> Iterator[Callable[[StoredFrame], None]]:
            with spool.open("wb") as file:

                def take(frame: StoredFrame) -> None:
                    file.write(frame.motion.tobytes())

                yield take

        field = read_whole(
            open_video,
            spooling,
            motion=motion,
            short_side=short_side,
            motion_cell=motion_cell,
            camera=camera,
            pictures=False,
        )
        grid = grid_size(field.width, field.height, motion_cell)
        write_tensors(
            out,
            [
                Tensor.of("times", np.array(field.times, np.float64)),
                Tensor("motion", np.dtype("<f4"), (len(field.times), *grid, 2), spool),
                Tensor.of("valid", np.array(field.valid, bool)),
            ],
            {
                "format": "tats-motion-field",
                "width": str(field.width),
                "height": str(field.height),
                "motion_cell": str(motion_cell),
                "camera": camera,
                "origin": field.origin.kind,
                "why": field.origin.why,
                "codec": field.reader.codec or "",
            },
        )
    moving = sum(field.valid)
    return Motion(len(field.times), moving, None, field.origin, field.reader.problem)


@contextmanager
def _spool(out: Path) -> Iterator[Path]:
    """Yield a temporary file next to the result."""
    with tempfile.TemporaryDirectory(prefix=".motion-", dir=out.parent) as folder:
        yield Path(folder) / "spool"


@contextmanager
def _named(clip: Path) -> Iterator[None]:
    """Name the file in a decoding error."""
    try:
        yield
    except DecodeError as error:
        raise DecodeError(f"`{clip}`: {error.message}", error.hint) from error
