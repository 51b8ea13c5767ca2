"""Reading batches in order, in this process or in workers, and handling unreadable videos."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from tatscli.data.batch import Batch, collate
from tatscli.data.dataset import Clips, Key, Sample
from tatscli.data.views import EvalViews
from tatscli.data.workers import Workers
from tatscli.errors import DataError, DecodeError, TatsError

AHEAD = 2
"""Batches that are queued for each worker."""

_TRIES = 10  # unreadable neighbours in a row that mean the store is gone


def nobody(row: int) -> None:
    """Ignore which row is read."""


class BatchReader:
    """Reads whole batches; a user's error is returned as a value, so that it crosses processes.

    Args:
        clips: Where the samples come from.
        bad: What an unreadable video does: stop, give way to the next row, or be left out.

    Attributes:
        at: Told the row of the store before each clip.
    """

    def __init__(self, clips: Clips, *, bad: Literal["stop", "replace", "skip"]) -> None:
        self.clips = clips
        self.bad = bad
        self.at: Callable[[int], None] = nobody

    def __getitem__(self, keys: Sequence[Any]) -> Batch | TatsError:
        reading: dict[str, Callable[[Any, list[tuple[int, str]]], list[Sample]]] = {
            "stop": self._read,
            "replace": self._read_or_replace,
            "skip": self._read_or_skip,
        }
        read = reading[self.bad]
        samples: list[Sample] = []
        bad: list[tuple[int, str]] = []
        try:
            for key in keys:
                samples += read(key, bad)
        except TatsError as error:
            return error
        return collate(samples, bad)

    def _read(self, item: int, bad: list[tuple[int, str]]) -> list[Sample]:
        assert isinstance(self.clips, EvalViews)
        self.at(self.clips.row(item))
        return self.clips[item]

    def _read_or_skip(self, item: int, bad: list[tuple[int, str]]) -> list[Sample]:
        assert isinstance(self.clips, EvalViews)
        try:
            return self._read(item, bad)
        except DataError as error:
            bad.append((self.clips.row(item), error.message))
            return []

    def _read_or_replace(self, key: Key, bad: list[tuple[int, str]]) -> list[Sample]:
        epoch, position = key
        rows = self.clips.rows
        tries = min(_TRIES, len(rows))
        for neighbour in range(position, position + tries):
            row = rows[neighbour % len(rows)]
            self.at(row)
            try:
                return self.clips[epoch, neighbour % len(rows)]
            except DecodeError as error:
                bad.append((row, error.message))
        raise DataError(
            f"{tries} videos in a row cannot be read, the last because {bad[-1][1]}",
            hint="check that the store is complete and its disk is mounted",
        )


class Batches(Iterator[Batch]):
    """Batches in order.

    Another thread than the one that waits for a batch may close it; the iteration then ends.

    Args:
        reader: Reads a batch.
        order: The keys of each batch.
        workers: Who read, and end with it; None reads in the process that iterates.
        check: Told of each batch before it is handed out; may raise.
        pin: Hand batches out in pinned memory.
    """

    def __init__(
        self,
        reader: BatchReader,
        order: Iterator[list[Any]],
        workers: Workers | None,
        *,
        check: Callable[[Batch], None],
        pin: bool,
    ) -> None:
        self._stopped = threading.Event()
        self._workers = workers
        # No method: the generator must not keep alive what ends it when it is dropped.
        self._read = _read(reader, order, workers, self._stopped, check, pin=pin)

    def __next__(self) -> Batch:
        return next(self._read)

    def close(self) -> None:
        """End the iteration and the workers."""
        self._stopped.set()
        with suppress(ValueError):  # a thread is waiting in there, and leaves by itself
            self._read.close()
            if self._workers is not None:
                self._workers.close()


def _read(
    reader: BatchReader,
    order: Iterator[list[Any]],
    workers: Workers | None,
    stopped: threading.Event,
    check: Callable[[Batch], None],
    *,
    pin: bool,
) -> Generator[Batch, None, None]:
    answers = map(reader.__getitem__, order) if workers is None else _dealt(order, workers, stopped)
    try:
        for answer in answers:
            if isinstance(answer, TatsError):
                raise answer
            check(answer)
            yield answer.pin_memory() if pin else answer
    finally:
        if workers is not None:
            workers.close()


def _dealt(
    order: Iterator[list[Any]], workers: Workers, stopped: threading.Event
) -> Iterator[Batch | TatsError]:
    """Deal batches out to the workers in turn, `AHEAD` to each, and collect them in order."""
    due: deque[int] = deque()
    turns = itertools.cycle(range(len(workers)))
    for keys in itertools.chain(order, itertools.repeat(None)):
        if keys is not None:
            due.append(next(turns))
            workers.ask(due[-1], keys)
            if len(due) < AHEAD * len(workers):
                continue
        if not due:
            return
        answer = workers.receive(due.popleft(), stopped)
        if answer is None:
            return
        yield answer
