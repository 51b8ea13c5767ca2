"""`run_on_ray`: what `pool.run_in_order` does, on the nodes of a Ray cluster.

A group of jobs is a Ray task, and the task hands it to a child process of its worker: the local
pool with one process. So a video that kills its process, or takes too long, is found out where it
happens, with the same words as on one machine, and is not tried again. What Ray retries is what is
no fault of the video: a node or a Ray worker that is lost.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

from tatscli.errors import DataError, Exit, TatsError, UsageError
from tatscli.store.pool import Crash, Job, Result, Timeout, Work, run_in_order

_RETRIES = 3  # of a job whose node or Ray worker is lost
_AHEAD = 16  # groups for each CPU that may be done before their turn
_RESULT_BYTES = 100 << 20  # Ray's memory for results on one node; frames do not go through it
_FAREWELL = 5  # seconds that cancelled tasks get to end
_KNOCK = 5  # seconds for an address to answer; Ray itself would try for minutes


@dataclass(frozen=True, slots=True)
class Lost(Crash):
    """Ray gave a job up; it does not tell an exit code.

    Attributes:
        reason: What was lost.
    """

    exitcode: int = -1
    reason: str = ""

    def __str__(self) -> str:
        return f"crashed: {self.reason}"


def run_on_ray(
    work: Work[Job, Result],
    groups: Iterable[Sequence[Job]],
    *,
    ahead: int | None = None,
    timeout: float | None = None,
    address: str | None = None,
    workers: int | None = None,
    shared: Sequence[Path] = (),
) -> Generator[tuple[Job, Result | Crash | Timeout], None, None]:
    """Run groups of jobs as Ray tasks and yield each job with its result, in job order.

    Closing the generator cancels what runs. Every node needs this package, and what the jobs read
    and write has to be on a file system that all nodes share, at the same path.

    Args:
        work: A function of a module; it should return its errors, as for `run_in_order`.
        groups: As for `run_in_order`.
        ahead: How many groups may be started beyond the one that is yielded next; 16 for each CPU
            that the cluster has now if None.
        timeout: Seconds a job may take once it runs; it may wait for its turn without limit.
        address: Of a running cluster, or `auto` for the one this machine belongs to; None starts
            one of this machine alone and ends it afterwards.
        workers: CPUs of the cluster started here; all cores if None.
        shared: Folders that each node has to see.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
        DataError: A node cannot run the jobs, or the cluster breaks down.
    """
    with connected(address, workers=workers) as ray:
        if ahead is None:
            ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 0)))
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt)
        home = Path.cwd()
        folders = [folder.absolute() for folder in shared]

        def submit(group: Sequence[Job]) -> tuple[Sequence[Job], Any]:
            return group, task.remote(work, group, timeout, home, folders)

        queue = iter(groups)
        waiting: deque[tuple[Sequence[Job], Any]] = deque()
        try:
            while True:
                waiting.extend(map(submit, islice(queue, max(0, ahead - len(waiting)))))
                if not waiting:
                    return
                group, reference = waiting[0]
                results = _results(ray, reference)
                waiting.popleft()
                if not isinstance(results, Lost):
                    yield from zip(group, results, strict=True)
                elif len(group) > 1:  # which of them it was is found out one at a time
                    waiting.extendleft(submit([job]) for job in reversed(group))
                else:
                    yield group[0], results
        finally:
            _cancel(ray, [reference for _, reference in waiting])


@contextmanager
def connected(address: str | None = None, *, workers: int | None = None) -> Iterator[Any]:
    """Be connected to a Ray cluster; an existing connection is used and left as it is.

    Args:
        address: Of a running cluster, or `auto`; None starts one on this machine.
        workers: CPUs of the cluster started here.

    Yields:
        The module `ray`.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # or it prints them on stdout
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"`--engine ray` needs the package Ray: {error}", 'pip install "tats[ray]"'
        ) from None
    if ray.is_initialized():
        yield ray
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        _start(ray, address, workers)
        _on_sigterm(_leave if before == signal.SIG_DFL else before)
        yield ray
    finally:
        ray.shutdown()
        _on_sigterm(before)


def _start(ray: Any, address: str | None, workers: int | None) -> None:
    """Connect, without a word on stdout."""
    settings: dict[str, Any] = {"address": address}
    if address is None:
        settings = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        settings["object_store_memory"] = _RESULT_BYTES
    try:
        _knock(os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address)
        ray.init(**settings, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        if address is None:
            raise DataError(f"Ray does not start on this machine: {_first_line(error)}") from error
        raise UsageError(
            f"cannot connect to a Ray cluster at `{address}`: {_first_line(error)}",
            "`ray start --head` starts one and prints its address; if it asks for a token, set "
            "RAY_AUTH_MODE=token here as well",
        ) from error


def _on_sigterm(handler: Any) -> None:
    """Replace Ray's handler, with which the exit code would be 15."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _leave(number: int, frame: Any) -> None:
    """Unwind the stack, which ends what Ray runs for us."""
    raise SystemExit(Exit.TERMINATED)


def _knock(address: str | None) -> None:
    """Raise an OSError where nobody listens at an address of the form `host:port`."""
    if address is not None and re.fullmatch(r"[^/]+:\d+", address):
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _results(ray: Any, reference: Any) -> list[Any] | Lost:
    """Wait for a task and return what became of its jobs, or of all of them together."""
    errors = ray.exceptions
    tries = f"in each of {_RETRIES + 1} attempts"
    try:
        return ray.get(reference)
    except SystemExit:  # from `_leave`; Ray makes its exit code 1
        raise SystemExit(Exit.TERMINATED) from None
    except errors.RayTaskError as error:
        if isinstance(error.cause, TatsError):
            raise error.cause from None
        raise DataError(
            f"a node of the Ray cluster cannot run the jobs: {_first_line(error.cause)}",
            "every node needs the same versions of tats and Python",
        ) from error
    except errors.OutOfMemoryError:
        return Lost(reason="Ray killed its worker because memory ran out")
    except errors.WorkerCrashedError:
        return Lost(reason=f"its Ray worker died {tries}")
    except (errors.NodeDiedError, errors.ObjectLostError):
        return Lost(reason=f"its node was lost {tries}")
    except errors.RayError as error:
        raise DataError(
            f"the Ray cluster failed: {_first_line(error)}",
            "`ray status` shows its nodes; what is finished is kept",
        ) from error


def _cancel(ray: Any, references: list[Any]) -> None:
    """End tasks and wait until they are gone, so that none still writes."""
    for reference in references:
        ray.cancel(reference, force=True)
    if references:
        ray.wait(references, num_returns=len(references), timeout=_FAREWELL, fetch_local=False)


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


# In the workers of Ray:


def _attempt(
    work: Work[Job, Result],
    group: Sequence[Job],
    timeout: float | None,
    home: Path,
    shared: Sequence[Path],
) -> list[Result | Crash | Timeout]:
    """Run a group of jobs in this worker's child process."""
    for folder in shared:
        if not folder.is_dir():
            raise DataError(
                f"node `{platform.node()}` of the Ray cluster does not see `{folder}`",
                "source and store must be on a file system shared by all nodes, at the same path",
            )
    inbox, running = _child(work, timeout, home)
    inbox.append(group)
    return [result for _, result in islice(running, len(group))]


@lru_cache(maxsize=1)
def _child(
    work: Work[Job, Result], timeout: float | None, home: Path
) -> tuple[deque[Sequence[Job]], Generator[tuple[Job, Result | Crash | Timeout], None, None]]:
    """Return a pool of one process that lives on for the next groups, and where to put those."""
    with suppress(OSError):  # not on this node: then nothing can be meant relative to it
        os.chdir(home)
    inbox: deque[Sequence[Job]] = deque()
    groups = iter(inbox.popleft, object())  # asked for one only when the last has been yielded
    return inbox, run_in_order(work, groups, workers=1, ahead=1, timeout=timeout)
