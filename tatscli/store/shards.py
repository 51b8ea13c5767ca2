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

from tatscli.files import publish

_PIECE = 1 << 20
_DTYPES = {"times": "F64", "offsets": "I64", "motion": "F16", "jpeg": "U8", "valid": "BOOL"}
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

    @property
    def size(self) -> int:
        """Bytes it takes in a shard."""
        return sum(math.prod(self.shape(kind)) * _item_bytes(kind) for kind in self.kinds())

    def kinds(self) -> list[str]:
        """Return which tensors it has.

        Ordered by the size of their elements, so that each one in a shard is aligned.
        """
        absent = {"jpeg"} if self.jpeg is None else set()
        if self.offsets is None:
            absent.add("offsets")
        return [kind for kind in _DTYPES if kind not in absent]

    def shape(self, kind: str) -> list[int]:
        """Return the shape of one of its tensors."""
        if kind == "motion":
            return list(self.motion_shape)
        if kind == "jpeg":
            return [0 if self.offsets is None else int(self.offsets[-1])]
        return list(getattr(self, kind).shape)

    def pieces(self, kind: str) -> Iterator[bytes]:
        """Yield the bytes of one of its tensors."""
        content = getattr(self, kind)
        if isinstance(content, Path):
            with content.open("rb") as file:
                yield from iter(lambda: file.read(_PIECE), b"")
        else:
            yield content.tobytes()

    def remove(self) -> None:
        """Delete the files."""
        if self.jpeg is not None:
            self.jpeg.unlink(missing_ok=True)
        self.motion.unlink(missing_ok=True)


def checksum(spool: Spool) -> str:
    """Return the checksum of a video: BLAKE2b of its tensors' bytes, in the order of their names.

    What lies in a shard has the same one: `Shard.checksum`.
    """
    return _digest(piece for kind in sorted(spool.kinds()) for piece in spool.pieces(kind))


def write_shard(path: Path, videos: Sequence[tuple[str, Spool]]) -> None:
    """Write videos as one safetensors file that appears complete or not at all.

    The format is written here because the library's writer wants every tensor in memory: eight
    bytes with the length of the header, the header in JSON, the data without gaps.

    Args:
        path: The shard.
        videos: Id and content of each video.
    """
    header: dict[str, object] = {}
    parts: list[tuple[Spool, str]] = []
    end = 0
    for kind in _DTYPES:
        for name, spool in videos:
            if kind not in spool.kinds():
                continue
            shape = spool.shape(kind)
            begin, end = end, end + math.prod(shape) * _item_bytes(kind)
            header[f"{name}/{kind}"] = {
                "dtype": _DTYPES[kind],
                "shape": shape,
                "data_offsets": [begin, end],
            }
            parts.append((spool, kind))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for spool, kind in parts:
                file.writelines(spool.pieces(kind))
            if file.tell() != 8 + len(text) + end:
                meant = 8 + len(text) + end
                raise RuntimeError(f"{path}: {file.tell()} bytes written, {meant} meant")
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk needs the room


@dataclass(frozen=True, slots=True)
class Tensor:
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
        self.videos: dict[str, dict[str, Tensor]] = {}
        end = 8 + length
        try:
            for name, entry in json.loads(text).items():
                video, _, kind = name.rpartition("/")
                begin, stop = entry["data_offsets"]
                tensor = Tensor(
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

    def pieces(self, tensor: Tensor) -> Iterator[bytes]:
        """Yield the bytes of a tensor."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            rest = tensor.size
            while rest and (piece := file.read(min(rest, _PIECE))):
                rest -= len(piece)
                yield piece

    def array(self, tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return a tensor, or some bytes of one, as a vector."""
        stop = tensor.size if stop is None else stop
        with self.path.open("rb") as file:
            file.seek(tensor.start + start)
            return np.frombuffer(file.read(stop - start), _NUMPY[tensor.dtype])


def _digest(pieces: Iterable[bytes]) -> str:
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _item_bytes(kind: str) -> int:
    return np.dtype(_NUMPY[_DTYPES[kind]]).itemsize
