"""Loader workers: processes that read batches, and a watchdog over them.

Every worker has its own connection, and the workers share nothing but a table of the row each of
them is reading. So one that dies or hangs does not affect the others, and the error names it and
its video.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext, assert_spawning
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch

from tatscli.data.descriptors import refuse_too_few_files
from tatscli.data.passing import receive, send
from tatscli.errors import DataError
from tatscli.machine import end_with_parent, unnamed_file

SLOW = 60.0  # seconds on one clip after which the user is warned

_LOOK = 0.2  # seconds between two looks at whether anybody still waits
_GRACE = 0.5  # seconds that a worker gets to end by itself
_DYING = 30.0  # seconds that the kernel may take to end a process whose connection is closed

_HINTS = {
    "SIGKILL": "usually the kernel's out-of-memory killer: use fewer `data.workers`, or a smaller"
    " `data.cache_gb` or `optim.batch_per_device`",
    "SIGBUS": "a file of the store was truncated while it was read, its disk is failing, or memory"
    " ran out; `tats store verify` checks the store",
}
_ALONE = "`data.workers=0` reads in the main process and shows where it fails"


class Reader(Protocol):
    """What reads batches.

    Attributes:
        at: Told the row of the store before each clip.
    """

    at: Callable[[int], None]

    def __getitem__(self, keys: Sequence[Any], /) -> Any:
        """Return a batch, or a `TatsError` as a value."""


class Workers:
    """Worker processes that read batches; they end when this is closed or garbage-collected.

    Args:
        reader: Reads a batch in a worker.
        count: How many there are.
        context: How they start; None is the platform's way.
        start: Called in each worker first, with its number.
        name: Returns the name of a row's video.
        timeout: Seconds that a worker may take to read one clip.
        warn: Called once for each worker that is slow to read a clip.
    """

    def __init__(
        self,
        reader: Reader,
        count: int,
        *,
        context: BaseContext,
        start: Callable[[int], None],
        name: Callable[[int], str],
        timeout: float,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        refuse_too_few_files(count)
        self._name, self._timeout, self._warn = name, timeout, warn
        self._table = _Table(count)
        self._seen = [(-1, 0, 0.0)] * count
        self._slow: set[tuple[int, int]] = set()
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._end = weakref.finalize(self, _end, os.getpid(), self._processes, self._connections)
        forked = context.get_start_method() == "fork"
        for number in range(count):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            # A forked process has copies of our ends, which would keep the others' open.
            inherited = self._connections if forked else []
            process = context.Process(  # type: ignore[attr-defined]
                target=_serve,
                args=(reader, number, theirs, self._table, start, inherited),
                name=f"loader worker {number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)

    def __len__(self) -> int:
        return len(self._connections)

    def ask(self, worker: int, keys: Sequence[Any]) -> None:
        """Give a worker another batch to read.

        Raises:
            DataError: If it has died.
        """
        try:
            self._connections[worker].send(keys)
        except ConnectionError:
            if not self._connections[worker].poll():  # else the reason, or a batch, lies there yet
                raise self._death(worker) from None

    def receive(self, worker: int, stopped: threading.Event) -> Any | None:
        """Wait for what a worker makes of the first of its batches; None once nobody waits.

        Raises:
            DataError: If it dies, or takes too long over a clip.
            RuntimeError: If its reader raised anything but a `TatsError`, which is a bug.
        """
        connection, process = self._connections[worker], self._processes[worker]
        self._seen[worker] = (*self._table.of(worker), time.monotonic())
        while not stopped.is_set():
            if not wait([connection, process.sentinel], _LOOK):
                self._watch(worker)
                continue
            try:
                if not connection.poll():
                    raise self._death(worker)
                answer = receive(connection)
            except (EOFError, ConnectionError):
                raise self._death(worker) from None
            if isinstance(answer, _Crash):
                raise RuntimeError(f"loader worker {worker} failed:\n{answer.text}")
            return answer
        return None

    def close(self) -> None:
        """End all workers."""
        self._end()

    def _watch(self, worker: int) -> None:
        """Look at how long a worker has been at the same clip."""
        row, begun = self._table.of(worker)
        now = time.monotonic()
        if self._seen[worker][:2] != (row, begun):
            self._seen[worker] = row, begun, now
            return
        taken = now - self._seen[worker][2]
        pid = self._processes[worker].pid
        who = f"loader worker {worker} (process {pid})"
        what = f"reading {self._video(row)}" if row >= 0 else "starting"
        if taken > self._timeout:
            raise DataError(
                f"{who} has been {what} for {taken:.0f} s, more than"
                f" `data.timeout: {self._timeout:g}` allows",
                f"check the disk or network that the store lies on; {_ALONE}",
            )
        if taken > SLOW and (worker, begun) not in self._slow:
            self._slow.add((worker, begun))
            if self._warn is not None:
                self._warn(
                    f"{who} has been {what} for {taken:.0f} s; giving up after"
                    f" {self._timeout:g} s (`data.timeout`)"
                )

    def _death(self, worker: int) -> DataError:
        process = self._processes[worker]
        process.join(_DYING)
        code, (row, _) = process.exitcode, self._table.of(worker)
        cause = f"ended with exit code {code}"
        hint = None
        if code is None:
            cause = "closed its connection"
        elif code < 0:
            with suppress(ValueError):  # a signal that Python has no name for
                code_name = signal.Signals(-code).name
                cause, hint = f"was killed by {code_name}", _HINTS.get(code_name)
        where = f"while reading {self._video(row)}" if row >= 0 else "before reading anything"
        return DataError(
            f"loader worker {worker} (process {process.pid}) {cause} {where}", hint or _ALONE
        )

    def _video(self, row: int) -> str:
        return f"`{self._name(row)}` (row {row})"


class _Table:
    """The row that each worker is reading, -1 before its first, and how many it has begun.

    In memory that is shared with the processes started from this one, whichever way they start.
    """

    def __init__(self, workers: int) -> None:
        self._open(unnamed_file("tats-workers", 16 * workers))
        self._table_W2[:, 0] = -1

    def of(self, worker: int) -> tuple[int, int]:
        """Return row and number of clips begun."""
        row, begun = self._table_W2[worker].tolist()
        return row, begun

    def enter(self, worker: int, row: int) -> None:
        """Say which row a worker reads next."""
        self._table_W2[worker] = row, self._table_W2[worker, 1] + 1

    def _open(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._table_W2 = np.frombuffer(mmap.mmap(descriptor, 0), np.int64).reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.reduction import DupFd

        assert_spawning(self)  # a descriptor can be sent to a process that is starting, not kept
        return {"descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["descriptor"].detach())


class _Crash:
    """What a bug in a reader left behind: its traceback as text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _serve(
    reader: Reader,
    number: int,
    connection: Connection,
    table: _Table,
    start: Callable[[int], None],
    inherited: Sequence[Connection],
) -> None:
    """Read what is asked for until nobody asks any more."""
    for one in inherited:
        one.close()
    start(number)
    torch.set_num_threads(1)  # the workers share the cores, and a fork leaves thread pools behind
    reader.at = lambda row: table.enter(number, row)
    end_with_parent()
    with suppress(EOFError, ConnectionError):
        while True:
            keys = connection.recv()
            try:
                answer = reader[keys]
            except Exception:
                answer = _Crash(traceback.format_exc())
            send(connection, answer)


def _end(owner: int, processes: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
    """Let the workers go, and kill those that are busy."""
    if os.getpid() != owner:
        return
    for connection in connections:
        connection.close()
    until = time.monotonic() + _GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
    for process in processes:
        process.join(_GRACE)  # one that the disk holds in the kernel outlives even that
