"""`run_in_order`: worker processes for jobs that may kill or hang them, results in job order.

A worker that dies in native code, or does not come back in time, takes only its own job with it;
which one that was is known, because every worker has a pipe of its own. (`concurrent.futures`
declares all its pending jobs broken instead, and cannot end one that hangs.)

Jobs come in groups, which a worker does together: the segments of one video are read in one pass.
If a worker dies on a group, its unfinished jobs are run again one at a time, so that a crash still
costs one job.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_NOT_YET = object()
_CONTEXT = get_context("spawn")  # a fork would inherit whatever threads and locks the parent has
_AHEAD = 16  # groups for each worker that may be done before their turn
_PATIENCE = 5.0  # seconds to wait for a killed process; one stuck in the kernel may take longer


@dataclass(frozen=True, slots=True)
class Crash:
    """The worker died on this job.

    Attributes:
        exitcode: Of the process; negative is the number of a signal.
    """

    exitcode: int

    def __str__(self) -> str:
        if self.exitcode >= 0:
            return f"crashed: its worker ended with exit code {self.exitcode}"
        name = signal.Signals(-self.exitcode).name
        hint = ", perhaps out of memory" if self.exitcode == -signal.SIGKILL else ""
        return f"crashed: its worker was killed by {name}{hint}"


@dataclass(frozen=True, slots=True)
class Timeout:
    """The worker was killed because this job took too long.

    Attributes:
        seconds: What was allowed.
    """

    seconds: float

    def __str__(self) -> str:
        return f"timeout: not finished after {self.seconds:g} s"


Work = Callable[[Sequence[Job]], Iterable[Result]]
"""What a worker does with a group of jobs: yields their results in order, each once it is done."""

Runner = Callable[
    [Work[Job, Result], Iterable[Sequence[Job]]],
    Generator[tuple[Job, Result | Crash | Timeout], None, None],
]
"""Runs a function on groups of jobs wherever it likes, and yields the results in job order."""


def run_in_order(
    work: Work[Job, Result],
    groups: Iterable[Sequence[Job]],
    *,
    workers: int,
    ahead: int | None = None,
    timeout: float | None = None,
) -> Generator[tuple[Job, Result | Crash | Timeout], None, None]:
    """Run jobs in processes and yield each with its result, in job order.

    Args:
        work: A function of a module; it should return its errors, since one that it raises ends its
            worker.
        groups: Jobs that are done together, none of the groups empty; picklable.
        workers: Number of processes.
        ahead: How many groups may be started beyond the one whose results are yielded next; what
            bounds the results waiting; 16 for each worker if None.
        timeout: Seconds of wall time for a job, from when a running worker has it or has finished
            the job before; None waits for ever.
    """
    ahead = _AHEAD * workers if ahead is None else ahead
    fresh = _numbered(groups)
    again: deque[_Group[Job]] = deque()  # jobs that get a worker of their own
    crew: list[_Worker[Job, Result]] = []
    done: dict[int, tuple[Job, Result | Crash | Timeout]] = {}
    started: deque[int] = deque()  # where each started group ends, until that is yielded
    turn, more = 0, True
    try:
        while True:
            while again or more:
                idle = next((worker for worker in crew if not worker.jobs), None)
                if idle is None and len(crew) == workers:
                    break
                if again:
                    group = again.popleft()
                elif len(started) >= ahead:
                    break
                else:
                    found = next(fresh, None)
                    if found is None:
                        more = False
                        break
                    group = found
                    started.append(group[-1][0] + 1)
                if idle is None:
                    idle = _Worker(work, timeout)
                    crew.append(idle)
                idle.give(group)
            if turn not in done:
                busy = [worker for worker in crew if worker.jobs]
                if not busy:
                    return
                for worker in _awaited(busy):
                    result = worker.take()
                    if result is _NOT_YET:
                        continue
                    if isinstance(result, Crash | Timeout):
                        crew.remove(worker)
                        if not worker.alone:
                            again.extend([job] for job in worker.jobs)
                            continue
                    index, job = worker.jobs.popleft()
                    done[index] = job, result
            while turn in done:
                yield done.pop(turn)
                turn += 1
                if started and turn == started[0]:
                    started.popleft()
    finally:
        for worker in crew:
            worker.kill()
        for worker in crew:
            worker.join()


_Group = Sequence[tuple[int, Job]]


def _numbered(groups: Iterable[Sequence[Job]]) -> Iterator[_Group[Job]]:
    """Give every job its place in the order of the results."""
    count = 0
    for group in groups:
        yield list(enumerate(group, count))
        count += len(group)


def _awaited(busy: list[_Worker[Job, Result]]) -> list[_Worker[Job, Result]]:
    """Wait until some workers have a result or are late; return those.

    A result that is ready counts, however late the caller collects it.
    """
    deadline = min(worker.deadline for worker in busy)
    patience = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    ready = set(wait([worker.pipe for worker in busy], patience))
    return [worker for worker in busy if worker.pipe in ready or worker.late]


class _Worker(Generic[Job, Result]):
    """A process and the parent's end of its pipe."""

    def __init__(self, work: Work[Job, Result], timeout: float | None) -> None:
        self.jobs: deque[tuple[int, Job]] = deque()  # those without a result
        self.alone = True
        self.deadline = float("inf")
        self._timeout = timeout
        self._started = False
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process: BaseProcess = _CONTEXT.Process(
            target=_serve, args=(work, theirs), daemon=True
        )
        with _interrupts_held():
            self._process.start()
        theirs.close()  # so that the death of the process is the end of the pipe

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def give(self, group: _Group[Job]) -> None:
        """Hand over jobs."""
        self.jobs.extend(group)
        self.alone = len(group) == 1
        if self._started:
            self._start_clock()
        with suppress(BrokenPipeError):  # died while idle: found when the result is taken
            self.pipe.send([job for _, job in group])

    def take(self) -> Any:
        """Receive the next job's result; `_NOT_YET` where the process only says it has started."""
        try:
            if not self.pipe.poll():
                return self._give_up()
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.pipe.close()
            crash = Crash(self._process.exitcode or 0)
            if not self._started:  # no fault of the job: the next worker would fail as well
                raise RuntimeError(f"worker processes do not start: {crash}") from None
            return crash
        if not self._started:
            self._started = True
            self._start_clock()  # what the start of a process takes is not the job's
            return _NOT_YET
        self._start_clock()
        return result

    def kill(self) -> None:
        """Kill the process, busy or not; it has nothing to clean up."""
        self.pipe.close()
        self._process.kill()

    def join(self) -> None:
        """Wait until a killed process is gone."""
        self._process.join(_PATIENCE)

    def _start_clock(self) -> None:
        if self._timeout is not None:
            self.deadline = time.monotonic() + self._timeout

    def _give_up(self) -> Timeout:
        self.kill()
        self.join()
        assert self._timeout is not None
        return Timeout(self._timeout)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C for the parent: processes started meanwhile inherit the blocked signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Work[Any, Any], pipe: Connection) -> None:
    """Run groups of jobs until the parent closes the pipe or is gone."""
    Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        pipe.send(None)
        while True:
            for result in work(pipe.recv()):
                pipe.send(result)


def _end_with_parent() -> None:
    """End a worker whose parent was killed at once, not when its present job is done."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
