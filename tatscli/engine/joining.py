"""Joining the process group of a training, and leaving it.

No command takes a rank: torchrun, SLURM, MPI and `--nproc` set it in the environment.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import count

import torch
import torch.distributed as dist

# Imported later, its functions would keep the group, whose connections then never close.
import torch.distributed.nn.functional

from tatscli.engine.distributed import World
from tatscli.engine.failures import Failures
from tatscli.engine.schedulers import Place, find_place
from tatscli.errors import TatsError, UsageError

COLLECTIVES = timedelta(minutes=30)
"""Timeout of collectives: how long one rank may keep the others waiting, to score or save."""

_JOINED = count()


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
        patience: Seconds to wait for the others.
        say: Called once if some are late.

    Raises:
        UsageError: If the environment is inconsistent, or there are fewer GPUs than processes.
        TatsError: If others do not arrive, or one of them ends before this one.
        Told: If another process has told why all of them end.
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
    failures = Failures(world, hosts=_hosts(place), reachable=partial(_answers, place))
    with _torchrun_environment(place), failures.heard():
        failures.store = _meet(place, patience, say)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=failures.store,
            rank=place.rank,
            world_size=place.size,
            timeout=COLLECTIVES,
            device_id=torch.device("cuda", gpu) if device_type == "cuda" else None,
        )
        try:
            with failures.told():
                yield world
        finally:
            dist.destroy_process_group()


def _hosts(place: Place) -> bool:
    """Whether this process keeps the store: rank 0 does, unless torchrun's own agent does."""
    return place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _meet(place: Place, patience: float, say: Callable[[str], None]) -> dist.Store:
    """Open the store through which the processes find each other, and wait until all are here.

    The waiting is done in Python, so that Ctrl-C ends it.

    Raises:
        TatsError: If somebody is missing after `patience` seconds, or the port is taken.
    """
    hosts = _hosts(place)
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
                missing = f"only {here} of {place.size} processes joined"
            raise TatsError(
                f"rank {place.rank} waited {patience:g} s for its peers: {missing}",
                hint="check the output of the other processes; `MASTER_ADDR` and `MASTER_PORT` set "
                "where they meet, `run.peers_timeout` how long to wait",
            )
        if waited > 10 and not told:
            told = True
            say(
                f"waiting for {place.size} processes at {place.address}:{place.port}, at most "
                f"{patience:g} s (`run.peers_timeout`); {here} joined so far"
            )
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
