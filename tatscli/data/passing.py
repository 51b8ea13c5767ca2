"""Sending batches from one process to another, through memory that both of them map.

The bytes of all tensors lie in one file in memory (`machine.py`), whose descriptor is sent through
the connection after the rest of the batch. This does not use `/dev/shm`, which containers keep
small: a full one kills the process that writes, in the middle of a training.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import torch
from torch import Tensor

from tatscli.data.batch import Batch
from tatscli.errors import TatsError
from tatscli.files import TOO_MANY_FILES, in_bytes, open_files_allowed
from tatscli.machine import unnamed_file

_STEP = 64  # tensors begin at multiples of so many bytes


@dataclass(frozen=True, slots=True)
class _Place:
    """Stands for a tensor that lies in the file, from byte `start` on."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A batch with places for its tensors, and the bytes of the file they lie in."""

    batch: Batch
    size: int


def send(connection: Connection, answer: Any) -> None:
    """Send an answer; a batch goes through memory, anything else is small and goes as it is."""
    if not isinstance(answer, Batch):
        connection.send(answer)
        return
    content: list[tuple[int, Tensor]] = []
    size = 0

    def lay(tensor: Tensor) -> Any:
        nonlocal size
        place = _Place(size, tuple(tensor.shape), tensor.dtype)
        content.append((size, tensor.contiguous()))
        size += -(-tensor.nbytes // _STEP) * _STEP
        return place

    outline = answer.each(lay)
    try:
        descriptor = unnamed_file("tats-batch", size)
        try:
            # By calls and not through a mapping: where there is no room they return an error, while
            # a process that touches such a page is killed.
            for start, tensor in content:
                _write(descriptor, tensor, start)
            connection.send(_Parcel(outline, size))
            send_handle(connection, descriptor, None)
        finally:
            os.close(descriptor)
    except ConnectionError:
        raise
    except OSError as error:
        problem = TatsError(
            f"out of memory for a batch of {in_bytes(size)}: {error.strerror}",
            "use fewer `data.workers` or a smaller `optim.batch_per_device`",
        )
        if error.errno in TOO_MANY_FILES:
            problem = TatsError(
                f"too many open files in a loader worker, which may have {open_files_allowed()}",
                "raise the limit, such as by `ulimit -n 1024`",
            )
        connection.send(problem)


def receive(connection: Connection) -> Any:
    """Return what `send` was given; the tensors of a batch share the sender's memory.

    Raises:
        EOFError: If the sender has gone.
        ConnectionError: If it went in the middle.
        OSError: If this process has too many files open.
    """
    answer = connection.recv()
    if not isinstance(answer, _Parcel):
        return answer
    try:
        descriptor = recv_handle(connection)
    except RuntimeError as error:  # it came, and had no place among the open files
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
    try:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages in one call
        memory = mmap.mmap(descriptor, answer.size, flags=flags) if answer.size else b""
    finally:
        os.close(descriptor)

    def fetch(place: Any) -> Tensor:
        count = math.prod(place.shape)
        if not count:
            return torch.empty(place.shape, dtype=place.dtype)
        flat = torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.start)
        return flat.view(place.shape)

    return answer.batch.each(fetch)


def _write(descriptor: int, tensor: Tensor, at: int) -> None:
    if not tensor.numel():
        return
    content = tensor.numpy().data.cast("B")
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written
