"""One process or many: every function here is a no-op in a single process.

Decisions that ranks share use gloo between hosts, independently of what the device computes; only
tensors on GPUs use NCCL.
"""

from __future__ import annotations

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
        rank: 0 to size - 1; rank 0 writes files and prints.
        size: Number of processes.
        local_rank: Rank on this machine.
        local_size: Processes on this machine, which share its cores.
        gpu: Index of its GPU among those it sees.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    gpu: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def alone() -> bool:
    """Whether there is no process group, or this process ignores it (`apart`)."""
    return _apart or not (dist.is_available() and dist.is_initialized())


@contextmanager
def apart() -> Iterator[None]:
    """Ignore the process group within the block."""
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
    """Wait until every process is here; the devices go on computing."""
    agreed([0.0])


def agreed(values: Sequence[float]) -> list[float]:
    """Return the largest of every process's values, one by one.

    This uses gloo between hosts, so it does not wait for a device.
    """
    if alone():
        return [float(value) for value in values]
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return list(tensor.tolist())


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


def is_share(tensor: Tensor | None) -> bool:
    """Whether a tensor is this process's shard of a larger one: a `DTensor`, which is not imported
    here because that takes a second."""
    return hasattr(tensor, "full_tensor")


def share(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, without a copy: all of it if it is not sharded."""
    held: Tensor = tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]
    return held


def full(tensor: Tensor) -> Tensor:
    """Return a whole tensor, gathered from all processes if it is sharded; all must call this."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def shared_as(tensor: Tensor, other: Tensor | None) -> Tensor:
    """Return a tensor, whole and the same in all processes, sharded like another one."""
    if other is None or not is_share(other):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    mesh, placements = other.device_mesh, other.placements
    return distribute_tensor(tensor.to(other.device), mesh, placements, src_data_rank=None)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all values of tensors, including other processes' shards: a scalar on the
    device."""
    norm = torch.nn.utils.get_total_norm([share(tensor) for tensor in tensors])
    if not any(map(is_share, tensors)):
        return norm
    return total(norm.double().square()).sqrt().to(norm.dtype)
