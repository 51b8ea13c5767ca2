"""One process or many: every function here is a no-op when the process is alone.

Nobody passes a rank: torchrun, SLURM, MPI or `--nproc` say in the environment who we are.
What ranks agree on travels over gloo, from host to host, whatever the device computes meanwhile;
only tensors that lie on GPUs travel over NCCL.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tatscli.engine.schedulers import LAUNCHED, LOST, Place, find_place
from tatscli.errors import TatsError, Told, UsageError

T = TypeVar("T")

COLLECTIVES = timedelta(minutes=30)
"""How long one rank may keep the others waiting, while it scores or saves."""

_JOINED = count()


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers.

    Attributes:
        rank: 0 to size - 1; 0 writes and speaks.
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
        """Whether this process writes files and speaks."""
        return self.rank == 0


def world_size() -> int:
    """Return how many processes were started together, before joining them; 1 in an environment
    that makes no sense."""
    try:
        place, _ = find_place(os.environ)
    except UsageError:
        return 1
    return place.size if place else 1


@contextmanager
def joined(device_type: str, *, patience: float, say: Callable[[str], None]) -> Iterator[World]:
    """Join the processes that were started together with this one, and leave them at the end.

    Args:
        device_type: What kind of device is trained on: on `cuda` each process takes a GPU of its
            own.
        patience: Seconds to wait for the others to come.
        say: Told once when some keep us waiting.

    Raises:
        UsageError: If the environment makes no sense, or there are fewer GPUs than processes.
        TatsError: If others do not come, or one of them ends before this one.
    """
    place, _ = find_place(os.environ)
    if place is None:
        yield World()
        return
    gpu = 0
    if device_type == "cuda":
        gpu = place.gpu(torch.cuda.device_count())
        torch.cuda.set_device(gpu)
    world = World(place.rank, place.size, place.local_rank, place.local_size, gpu)
    with _torchrun_environment(place), _lost_peers_told(world):
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=_meet(place, patience, say),
            rank=place.rank,
            world_size=place.size,
            timeout=COLLECTIVES,
            device_id=torch.device("cuda", gpu) if device_type == "cuda" else None,
        )
        try:
            yield world
        finally:
            dist.destroy_process_group()


def _meet(place: Place, patience: float, say: Callable[[str], None]) -> dist.Store:
    """Open the store through which the processes find each other, and wait until all are here.

    The waiting is done in Python, so that Ctrl-C ends it.

    Raises:
        TatsError: If somebody is missing after `patience` seconds, or the port is taken.
    """
    # Torchrun's own agent keeps the store; elsewhere rank 0 does.
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts = place.rank == 0 and not agent
    began, told, here = time.monotonic(), False, 0
    store: dist.Store | None = None
    while True:
        if store is None and (hosts or _answers(place)):
            store = _open_store(place, hosts=hosts)
            store.add("here", 1)
        if store is not None:
            here = store.add("here", 0)
            if here >= place.size:
                return store
        waited = time.monotonic() - began
        if waited > patience:
            missing = f"rank 0 cannot be reached at {place.address}:{place.port}"
            if store is not None:
                missing = f"only {here} of {place.size} processes came"
            raise TatsError(
                f"rank {place.rank} waited {patience:g} s for its peers: {missing}",
                hint="look at what the others say; `MASTER_ADDR` and `MASTER_PORT` say where to "
                "meet, `run.peers_timeout` how long to wait",
            )
        if waited > 10 and not told:
            told = True
            say(f"waiting for {place.size} processes at {place.address}:{place.port}")
        time.sleep(0.05)


def _answers(place: Place) -> bool:
    """Whether somebody listens where rank 0 should."""
    try:
        socket.create_connection((place.address, place.port), timeout=2).close()
    except OSError:
        return False
    return True


def _open_store(place: Place, *, hosts: bool) -> dist.Store:
    try:
        store = dist.TCPStore(
            place.address,
            place.port,
            place.size,
            is_master=hosts,
            timeout=COLLECTIVES,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        doing = "wait for its peers" if hosts else "meet its peers"
        raise TatsError(
            f"rank {place.rank} cannot {doing} at {place.address}:{place.port}: "
            + str(error).partition("\n")[0],
            hint="set `MASTER_PORT` to a free port, and `MASTER_ADDR` to the machine of rank 0",
        ) from error
    # Torchrun's store outlives a start, and what one process joins after another.
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"tats/{start}/{next(_JOINED)}", store)


@contextmanager
def _torchrun_environment(place: Place) -> Iterator[None]:
    """Say in torchrun's words what others said, for torch and for whatever else reads them."""
    before = {name: os.environ.get(name) for name in place.environment}
    os.environ.update(place.environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _lost_peers_told(world: World) -> Iterator[None]:
    """Turn torch's traceback into one message where another process is gone, which knows why."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _is_lost_peer(error):
            raise
        if LAUNCHED in os.environ:  # which has seen the other end, and passes on what it said
            raise Told(exit_code=LOST) from error
        raise TatsError(
            f"rank {world.rank} has lost another process of this training",
            hint="what that one said last tells why; `--resume` continues from the last checkpoint",
        ) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    if isinstance(error, dist.DistError):
        return True
    return any(sign in str(error) for sign in ("gloo", "Connection closed by peer"))


def alone() -> bool:
    """Whether there is no process group."""
    return not (dist.is_available() and dist.is_initialized())


def size() -> int:
    """Return the number of processes that have joined."""
    return 1 if alone() else dist.get_world_size()


def wait() -> None:
    """Wait until every process is here; the devices go on computing."""
    largest(0.0)


def largest(value: float) -> float:
    """Return the largest of every process's `value`."""
    if alone():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def agreed(values: Sequence[float]) -> list[float]:
    """Return the largest of every process's values, one by one.

    They travel from host to host (gloo), so that no device is waited for.
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
    """Whether a tensor is this process's share of a larger one: a `DTensor`, whose import takes a
    second where none is made."""
    return hasattr(tensor, "full_tensor")


def share(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in place: all, if it is not shared out."""
    held: Tensor = tensor.to_local() if is_share(tensor) else tensor  # type: ignore[attr-defined]
    return held


def full(tensor: Tensor) -> Tensor:
    """Return a tensor whole, gathered from all processes if it is shared out; they all ask."""
    return tensor.full_tensor() if is_share(tensor) else tensor  # type: ignore[attr-defined]


def shared_as(tensor: Tensor, other: Tensor | None) -> Tensor:
    """Return a whole tensor, the same in all processes, shared out among them as another is."""
    if other is None or not is_share(other):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    mesh, placements = other.device_mesh, other.placements
    return distribute_tensor(tensor.to(other.device), mesh, placements, src_data_rank=None)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all values of tensors, those of other processes' shares as well: a scalar
    on the device."""
    norm = torch.nn.utils.get_total_norm([share(tensor) for tensor in tensors])
    if not any(map(is_share, tensors)):
        return norm
    return total(norm.double().square()).sqrt().to(norm.dtype)
