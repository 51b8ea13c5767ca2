"""Writing a safetensors file piece by piece: the library's own writer wants all of it in memory.

The format is eight bytes with the length of the header, the header in JSON, and the data without
gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tatscli.files import publish

PIECE = 1 << 20  # bytes that are read at once

_NAMES = {"f8": "F64", "i8": "I64", "f4": "F32", "i4": "I32", "f2": "F16", "u1": "U8", "b1": "BOOL"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose bytes need not be in memory.

    Attributes:
        name: Its name in the file.
        dtype: Type of its elements, little-endian.
        shape: Its shape.
        content: An array, a file that holds the bytes, or what yields them.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    content: np.ndarray | Path | Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Tensor:
        """Describe an array."""
        return cls(name, array.dtype, array.shape, np.ascontiguousarray(array))

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes."""
        if isinstance(self.content, np.ndarray):
            yield self.content.tobytes()
            return
        if not isinstance(self.content, Path):
            yield from self.content()
            return
        with self.content.open("rb") as file:
            yield from iter(lambda: file.read(PIECE), b"")


def write_tensors(
    path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that appears complete or not at all.

    Args:
        path: The file.
        tensors: In the order of their data; large elements first keeps each one aligned.
        metadata: Texts beside the tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype.str[1:]],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(path, [len(text).to_bytes(8, "little"), text], tensors, 8 + len(text) + end)


def _write(path: Path, head: Iterable[bytes], tensors: Sequence[Tensor], size: int) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(head)
            for tensor in tensors:
                file.writelines(tensor.pieces())
            if file.tell() != size:
                raise RuntimeError(f"{path}: {file.tell()} bytes written, {size} meant")
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
