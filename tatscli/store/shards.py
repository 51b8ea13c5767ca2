"""Writing shards: videos wait in files of their own until there are enough for a safetensors file.

Only the copying sees picture data, in small pieces, so memory stays flat whatever the length of a
video.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tatscli.files import publish


@dataclass(frozen=True, slots=True)
class Spool:
    """One converted video, before it is in a shard; its JPEGs and motion lie in files.

    Attributes:
        jpeg: File of the JPEGs one after the other.
        motion: File of the motion field (T, gh, gw, 2) float16.
        motion_shape: Shape of the motion field.
        offsets: (T + 1,) int64, where each JPEG begins and ends.
        times: (T,) float64, seconds.
        valid: (T,) bool, frames with motion.
    """

    jpeg: Path
    motion: Path
    motion_shape: tuple[int, int, int, int]
    offsets: np.ndarray
    times: np.ndarray
    valid: np.ndarray

    @property
    def size(self) -> int:
        """Bytes it takes in a shard."""
        motion = 2 * int(np.prod(self.motion_shape))
        return int(self.offsets[-1]) + motion + 8 * len(self.offsets) + 9 * len(self.times)

    def remove(self) -> None:
        """Delete the files."""
        self.jpeg.unlink(missing_ok=True)
        self.motion.unlink(missing_ok=True)


def write_shard(path: Path, videos: Sequence[tuple[str, Spool]]) -> None:
    """Write videos as one safetensors file that appears complete or not at all.

    The format is written here because the library's writer wants every tensor in memory: eight
    bytes with the length of the header, the header in JSON, the data without gaps. Tensors are
    ordered by the size of their elements, so that each one is aligned.

    Args:
        path: The shard.
        videos: Id and content of each video.
    """
    header: dict[str, object] = {}
    parts: list[Callable[[BinaryIO], object]] = []
    end = 0
    for kind in ("times", "offsets", "motion", "jpeg", "valid"):
        for name, spool in videos:
            dtype, shape, size, write = _tensor(kind, spool)
            header[f"{name}/{kind}"] = {
                "dtype": dtype,
                "shape": shape,
                "data_offsets": [end, end + size],
            }
            parts.append(write)
            end += size
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for write in parts:
            write(file)
        if file.tell() != 8 + len(text) + end:
            raise RuntimeError(f"{path}: {file.tell()} bytes written, {8 + len(text) + end} meant")
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def _tensor(kind: str, spool: Spool) -> tuple[str, list[int], int, Callable[[BinaryIO], object]]:
    """Return type, shape, bytes and writer of one tensor of a video."""
    if kind == "jpeg":
        size = int(spool.offsets[-1])
        return "U8", [size], size, lambda file: _copy(spool.jpeg, file)
    if kind == "motion":
        shape = list(spool.motion_shape)
        return "F16", shape, 2 * int(np.prod(shape)), lambda file: _copy(spool.motion, file)
    array: np.ndarray = getattr(spool, kind)
    dtype = {"times": "F64", "offsets": "I64", "valid": "BOOL"}[kind]
    return dtype, list(array.shape), array.nbytes, lambda file: file.write(array.tobytes())


def _copy(source: Path, file: BinaryIO) -> None:
    with source.open("rb") as stream:
        shutil.copyfileobj(stream, file, 1 << 20)
