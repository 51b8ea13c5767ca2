"""Shards: videos wait in files of their own until there are enough for a safetensors file.

Only the copying sees picture data, in small pieces, so memory stays flat whatever the length of a
video. The library's reader is used for clips (`reader.py`); here is what writing and checking need.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tatscli.tensors import PIECE, Tensor, write_tensors

_NUMPY = {"F64": "<f8", "I64": "<i8", "F16": "<f2", "U8": "u1", "BOOL": "?"}
_MAX_HEADER = 100_000_000  # the library refuses more


@dataclass(frozen=True, slots=True)
class Spool:
    """One converted video, before it is in a shard; its JPEGs and motion lie in files.

    Attributes:
        jpeg: File of the JPEGs one after the other; None without pictures.
        motion: File of the motion field (T, gh, gw, 2) float16.
        motion_shape: Shape of the motion field.
        offsets: (T + 1,) int64, where each JPEG begins and ends; None without pictures.
        times: (T,) float64, seconds.
        valid: (T,) bool, frames with motion.
    """

    jpeg: Path | None
    motion: Path
    motion_shape: tuple[int, int, int, int]
    offsets: np.ndarray | None
    times: np.ndarray
    valid: np.ndarray

    def tensors(self, video: str = "") -> list[Tensor]:
        """Return its tensors for a shard, as those of a video; the largest elements first."""
        found = [Tensor.of(f"{video}/times", self.times)]
        if self.offsets is not None:
            found.append(Tensor.of(f"{video}/offsets", self.offsets))
        found.append(Tensor(f"{video}/motion", np.dtype("<f2"), self.motion_shape, self.motion))
        if self.jpeg is not None and self.offsets is not None:
            size = (int(self.offsets[-1]),)
            found.append(Tensor(f"{video}/jpeg", np.dtype("u1"), size, self.jpeg))
        return [*found, Tensor.of(f"{video}/valid", self.valid)]

    @property
    def size(self) -> int:
        """Bytes it takes in a shard."""
        return sum(tensor.size for tensor in self.tensors())

    def remove(self) -> None:
        """Delete the files."""
        if self.jpeg is not None:
            self.jpeg.unlink(missing_ok=True)
        self.motion.unlink(missing_ok=True)


def checksum(spool: Spool) -> str:
    """Return the checksum of a video: BLAKE2b of its tensors' bytes, in the order of their names.

    What lies in a shard has the same one: `Shard.checksum`.
    """
    tensors = sorted(spool.tensors(), key=lambda tensor: tensor.name)
    return _digest(piece for tensor in tensors for piece in tensor.pieces())


def write_shard(path: Path, videos: Sequence[tuple[str, Spool]]) -> None:
    """Write videos as one safetensors file that appears complete or not at all.

    Args:
        path: The shard.
        videos: Id and content of each video.
    """
    tensors = [tensor for video, spool in videos for tensor in spool.tensors(video)]
    # Tensors of a kind together: so each one is aligned, whatever the length of the JPEGs.
    kinds = ("times", "offsets", "motion", "jpeg", "valid")
    write_tensors(path, sorted(tensors, key=lambda one: kinds.index(one.name.rpartition("/")[2])))


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor as the header of a shard describes it.

    Attributes:
        dtype: In the words of safetensors.
        shape: Its shape.
        start: First byte in the file.
        size: Bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Shard:
    """A shard as a file: what it says it holds, and the bytes of it; for checking.

    Attributes:
        path: The file.
        videos: Tensors of each id by kind.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no safetensors file, or data are missing; the message says what.
        """
        self.path = path
        with path.open("rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER, self._size - 8):
                raise ValueError(f"its header cannot be {length} bytes long")
            text = file.read(length)
        self.videos: dict[str, dict[str, Place]] = {}
        end = 8 + length
        try:
            for name, entry in json.loads(text).items():
                video, _, kind = name.rpartition("/")
                begin, stop = entry["data_offsets"]
                tensor = Place(
                    entry["dtype"], tuple(entry["shape"]), 8 + length + begin, stop - begin
                )
                size = math.prod(tensor.shape) * np.dtype(_NUMPY[tensor.dtype]).itemsize
                if begin < 0 or tensor.size != size:
                    raise ValueError(f"`{name}` has {tensor.size} bytes for {tensor.shape}")
                self.videos.setdefault(video, {})[kind] = tensor
                end = max(end, tensor.start + tensor.size)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(f"its header is damaged: {type(error).__name__}: {error}") from None
        except ValueError as error:
            raise ValueError(f"its header is damaged: {error}") from None
        if end != self._size:
            raise ValueError(f"it has {self._size} bytes instead of {end}")

    def checksum(self, video: str) -> str:
        """Return the checksum of a video as it lies here."""
        tensors = self.videos[video]
        return _digest(piece for kind in sorted(tensors) for piece in self.pieces(tensors[kind]))

    def pieces(self, tensor: Place) -> Iterator[bytes]:
        """Yield the bytes of a tensor."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            rest = tensor.size
            while rest and (piece := file.read(min(rest, PIECE))):
                rest -= len(piece)
                yield piece

    def array(self, tensor: Place, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return a tensor, or some bytes of one, as a vector."""
        stop = tensor.size if stop is None else stop
        with self.path.open("rb") as file:
            file.seek(tensor.start + start)
            return np.frombuffer(file.read(stop - start), _NUMPY[tensor.dtype])


def _digest(pieces: Iterable[bytes | memoryview]) -> str:
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
