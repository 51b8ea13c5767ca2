"""One process or many: every function here is a no-op when the process is alone.

Nobody passes a rank: under `torchrun` the environment says who we are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_apart = False


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0 to size - 1; 0 writes and speaks.
        size: Number of processes.
        local_rank: Rank on this machine, which is also the index of its GPU.
        local_size: Processes on this machine, which share its cores.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


def world_size() -> int:
    """Return how many processes `torchrun` started, before joining them."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined(device_type: str) -> Iterator[World]:
    """Join the process group that `torchrun` describes, and leave it at the end."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World()
        return
    world = World(
        rank=int(os.environ["RANK"]),
        size=world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
    )
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


def alone() -> bool:
    """Whether there is no process group, or this process works for itself (`apart`)."""
    return _apart or not (dist.is_available() and dist.is_initialized())


@contextmanager
def apart() -> Iterator[None]:
    """Work as if alone, on what the other processes need not hear of."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def size() -> int:
    """Return the number of processes that have joined."""
    return 1 if alone() else dist.get_world_size()


def wait() -> None:
    """Wait until every process is here."""
    if not alone():
        dist.barrier()


def largest(value: float, device: torch.device) -> float:
    """Return the largest of every process's `value`."""
    if alone():
        return value
    tensor = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else None)
    tensor = tensor.to(device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def gathered(values: list[T]) -> list[T]:
    """Return every process's list joined in rank order."""
    if alone():
        return values
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def place() -> tuple[int, int]:
    """Return this process's rank, and how many there are."""
    return (0, 1) if alone() else (dist.get_rank(), dist.get_world_size())


def total(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the tensor itself where there is one."""
    if alone():
        return value
    summed = value.clone()
    dist.all_reduce(summed)
    return summed


def mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; the tensor itself where there is one."""
    return value if alone() else total(value) / dist.get_world_size()


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return mean(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return mean(gradient)


def mean_with_gradient(value: Tensor) -> Tensor:
    """Return `mean`, through which gradients flow to the values of all processes.

    Each gets the mean of all gradients, as of the mean of all losses: what averaging the gradients
    of the parameters afterwards makes of it is what one process with all the data has.
    """
    mixed: Tensor = value if alone() else _Mean.apply(value)  # type: ignore[no-untyped-call]
    return mixed


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all processes, in one transfer."""
    if alone():
        return
    means = mean(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = means.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
