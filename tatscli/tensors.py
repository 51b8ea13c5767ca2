"""Safetensors files, written piece by piece, and digests of what they hold.

The library's own writer needs all tensors in memory, creates files that only their owner can read
(mode 0600), and writes metadata in random order, so that equal tensors give different files.

The format is eight bytes with the length of the header, the header in JSON, and the data without
gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tatscli.files import publish

if TYPE_CHECKING:
    import torch

PIECE = 1 << 20  # bytes read at once
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit

_NAMES = {"f8": "F64", "i8": "I64", "f4": "F32", "i4": "I32", "f2": "F16", "u1": "U8", "b1": "BOOL"}
_TORCH = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""The format's names of types, by those of NumPy and of torch."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose bytes need not be in memory.

    Attributes:
        name: Its name in the file.
        dtype: Type of its elements, little-endian.
        shape: Its shape.
        content: An array, a file with the bytes, or a function that yields them.
        type: The format's name of the type; by default that of `dtype`.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    content: np.ndarray | Path | Callable[[], Iterator[bytes]]
    type: str = ""

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Tensor:
        """Describe an array."""
        return cls(name, array.dtype, array.shape, np.ascontiguousarray(array))

    @classmethod
    def of_torch(cls, name: str, tensor: torch.Tensor) -> Tensor:
        """Describe a torch tensor, of any type that the format has and on any device."""
        import torch

        plain = tensor.detach().cpu().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy()
        kind = np.dtype(f"V{plain.element_size()}")  # NumPy has no bfloat16: bytes alone
        named = _TORCH[str(plain.dtype).removeprefix("torch.")]
        return cls(name, kind, tuple(plain.shape), raw, named)

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the bytes."""
        if isinstance(self.content, np.ndarray):
            yield self.content.reshape(-1).view(np.uint8).data if self.size else b""
            return
        if not isinstance(self.content, Path):
            yield from self.content()
            return
        with self.content.open("rb") as file:
            yield from iter(lambda: file.read(PIECE), b"")


def write_tensors(
    path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Args:
        path: The file.
        tensors: In the order of their data; large elements first keeps all aligned.
        metadata: Texts beside the tensors.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {
            "dtype": tensor.type or _NAMES[tensor.dtype.str[1:]],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(path, [len(text).to_bytes(8, "little"), text], tensors, 8 + len(text) + end)


def save_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write torch tensors as a safetensors file; equal tensors and metadata give equal bytes.

    Args:
        path: The file; it is written atomically.
        tensors: By name.
        metadata: Texts beside the tensors.
    """
    described = [Tensor.of_torch(name, one) for name, one in sorted(tensors.items())]
    described.sort(key=lambda one: -one.dtype.itemsize)  # larger elements first: all are aligned
    write_tensors(path, described, metadata)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file.

    Returns:
        The header without `__metadata__`, and the byte at which the data begins.

    Raises:
        ValueError: If the file is cut short, or not a safetensors file.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
            raise ValueError("it is cut short, or not a safetensors file")
        header = json.loads(opened.read(length))
    if not isinstance(header, dict):
        raise ValueError("it is not a safetensors file")
    header.pop("__metadata__", None)
    return header, 8 + length


def digest_of_file(path: Path) -> str:
    """Return `digest_of` the tensors in a safetensors file, reading it piece by piece.

    Raises:
        ValueError, KeyError, TypeError: If it is not a safetensors file.
        OSError: If it cannot be read.
    """
    header, start = read_header(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for name, about in sorted(header.items()):
            begin, end = about["data_offsets"]
            digest.update(_identity(name, about["dtype"], about["shape"]))
            file.seek(start + begin)
            for offset in range(begin, end, PIECE):
                digest.update(file.read(min(PIECE, end - offset)))
    return digest.hexdigest()


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: of their names in order, types, shapes and bytes.

    It does not depend on the file they are in: neither on the order of tensors nor on metadata.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        one = Tensor.of_torch(name, tensors[name])
        digest.update(_identity(name, one.type, one.shape))
        for piece in one.pieces():
            digest.update(piece)
    return digest.hexdigest()


def _identity(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    return json.dumps([name, dtype, list(shape)]).encode() + b"\n"


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
