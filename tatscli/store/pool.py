"""`run_in_order`: worker processes for jobs that may kill them, results in the order of the jobs.

A worker that dies in native code takes only its own job with it; which one that was is known,
because every worker has a pipe of its own. (`concurrent.futures` declares all its pending jobs
broken instead.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

_CONTEXT = get_context("spawn")  # a fork would inherit whatever threads and locks the parent has


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
        hint = ", perhaps for lack of memory" if self.exitcode == -signal.SIGKILL else ""
        return f"crashed: its worker was killed by {name}{hint}"


def run_in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int, ahead: int
) -> Generator[tuple[Job, Result | Crash], None, None]:
    """Run jobs in processes and yield each with its result, in the order of the jobs.

    Args:
        work: A function of a module; it should return its errors, since one that it raises ends its
            worker.
        jobs: Picklable.
        workers: Number of processes.
        ahead: How many jobs may be started beyond the one that is yielded next; what bounds the
            results waiting.
    """
    queue = enumerate(jobs)
    crew: list[_Worker[Job, Result]] = []
    done: dict[int, tuple[Job, Result | Crash]] = {}
    turn, more = 0, True
    try:
        while True:
            while more:
                idle = next((worker for worker in crew if worker.task is None), None)
                unyielded = len(done) + sum(worker.task is not None for worker in crew)
                if (idle is None and len(crew) == workers) or unyielded >= ahead:
                    break
                task = next(queue, None)
                if task is None:
                    more = False
                    break
                if idle is None:
                    idle = _Worker(work)
                    crew.append(idle)
                idle.give(task)
            busy = {worker.pipe: worker for worker in crew if worker.task is not None}
            if turn not in done:
                if not busy:
                    return
                for pipe in wait(list(busy)):
                    worker = busy[pipe]  # type: ignore[index]
                    result = worker.take()
                    if result is None:
                        continue
                    assert worker.task is not None
                    (index, job), worker.task = worker.task, None
                    done[index] = job, result
                    if isinstance(result, Crash):
                        crew.remove(worker)
            while turn in done:
                yield done.pop(turn)
                turn += 1
    finally:
        for worker in crew:
            worker.stop()


class _Worker(Generic[Job, Result]):
    """A process and the parent's end of its pipe."""

    def __init__(self, work: Callable[[Job], Result]) -> None:
        self.task: tuple[int, Job] | None = None
        self._started = False
        self.pipe, theirs = _CONTEXT.Pipe()
        self._process: BaseProcess = _CONTEXT.Process(
            target=_serve, args=(work, theirs), daemon=True
        )
        with _interrupts_held():
            self._process.start()
        theirs.close()  # so that the death of the process is the end of the pipe

    def give(self, task: tuple[int, Job]) -> None:
        """Hand over a job."""
        self.task = task
        with suppress(BrokenPipeError):  # died while idle: found when the result is taken
            self.pipe.send(task[1])

    def take(self) -> Result | Crash | None:
        """Receive what became of the job; None where the process only says that it has started."""
        try:
            result = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            self.pipe.close()
            crash = Crash(self._process.exitcode or 0)
            if not self._started:  # no fault of the job: the next worker would fail as well
                raise RuntimeError(f"a worker process does not start: {crash}") from None
            return crash
        if not self._started:
            self._started = True
            return None
        return result

    def stop(self) -> None:
        """End the process, at work or not."""
        self.pipe.close()
        self._process.terminate()
        self._process.join()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C for the parent: a process started meanwhile inherits that the signal waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any], Any], pipe: Connection) -> None:
    """Work off jobs until the parent closes the pipe or is gone."""
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):
        pipe.send(None)
        while True:
            pipe.send(work(pipe.recv()))
