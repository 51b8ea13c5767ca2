"""`Feed`: in order, interruptible, closed with all it started; on a GPU one copy ahead."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.engine.feed import Feed, SideStream
from tatscli.errors import DataError
from tests.data.test_workers import Faulty, training
from tests.processes import SLOW

CPU = torch.device("cpu")


@dataclass
class Numbered:
    """A micro-batch that knows its number and where it is."""

    number: int
    log: list[Any] = field(default_factory=list)
    replaced: int = 0
    where: Any = None
    stream: Any = None

    @property
    def row_B(self) -> Tensor:
        return torch.tensor([self.number, 100 + self.number])

    def to(self, device: torch.device) -> Numbered:
        self.log.append(("copy", self.number))
        return Numbered(self.number, self.log, where=device)

    def record_stream(self, stream: Any) -> None:
        self.log.append(("used on", self.number, stream.name))


def never() -> bool:
    return False


def until(ready: Callable[[], object]) -> None:
    began = time.monotonic()
    while not ready():
        assert time.monotonic() - began < SLOW
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    threads, children = {*threading.enumerate()}, {*multiprocessing.active_children()}
    yield
    until(lambda: "feed" not in [one.name for one in {*threading.enumerate()} - threads])
    until(lambda: not {*multiprocessing.active_children()} - children)


def test_batches_come_in_order_on_their_device_and_only_when_asked_for() -> None:
    read: list[int] = []

    def batches() -> Iterator[Numbered]:
        for number in range(100):
            read.append(number)
            time.sleep(0.05 if number == 3 else 0)
            yield Numbered(number)

    with Feed(batches(), CPU) as feed:
        taken = [feed.take(never) for _ in range(3)]
        assert [(one.number, one.where) for one in taken] == [(n, CPU) for n in range(3)]
        assert feed.rows == [0, 100, 1, 101, 2, 102]
        feed.begin()
        assert (feed.waited, feed.rows) == (0.0, [])
        time.sleep(0.1)
        assert read == [0, 1, 2]  # a core alone works for the step, not for the next batch
        assert feed.take(never).number == 3
        assert 0.05 <= feed.waited < SLOW
        assert feed.rows == [3, 103]


def test_waiting_can_be_stopped_and_loses_nothing() -> None:
    come = threading.Event()

    def batches() -> Iterator[Numbered]:
        yield Numbered(0)
        come.wait()
        yield Numbered(1)
        yield Numbered(2)

    asked = 0

    def after_a_while() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with Feed(batches(), CPU) as feed:
        assert feed.take(lambda: True).number == 0  # what is there soon is not refused
        assert feed.take(after_a_while) is None
        assert asked == 6  # again and again, while there is nothing
        assert feed.rows == [0, 100]
        come.set()
        assert [feed.take(never).number for _ in range(2)] == [1, 2]


def test_errors_of_the_loader_are_raised_where_batches_are_taken() -> None:
    closed = []

    def batches() -> Iterator[Numbered]:
        try:
            yield Numbered(0)
            raise DataError("the disk is gone", "look")
        finally:
            closed.append(True)

    with Feed(batches(), CPU) as feed:
        feed.take(never)
        for _ in range(2):
            with pytest.raises(DataError, match="the disk is gone"):
                feed.take(never)
    assert closed
    with Feed(iter([Numbered(0)]), CPU) as feed:
        feed.take(never)
        with pytest.raises(RuntimeError, match="came to an end"):
            feed.take(never)


@pytest.mark.parametrize("how", ["leave", "fail", "drop"])
def test_closing_ends_thread_and_batches(how: str) -> None:
    closed = []

    def batches() -> Iterator[Numbered]:
        try:
            while True:
                yield Numbered(0)
        finally:
            closed.append(threading.current_thread().name)

    if how == "drop":
        feed = Feed(batches(), CPU)
        feed.take(never)
        del feed
    else:
        try:
            with Feed(batches(), CPU) as feed:
                feed.take(never)
                if how == "fail":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert how == "fail"
    assert len(closed) == 1


def test_closing_does_not_wait_for_workers_that_hang() -> None:
    batches = training(Faulty(lambda: time.sleep(SLOW)), workers=2)
    began = time.monotonic()
    with Feed(batches, CPU) as feed:
        while feed.take(lambda: time.monotonic() - began > 1.0) is not None:
            pass
    assert time.monotonic() - began < SLOW / 2


class PretendCuda:
    """Stands for `torch.cuda`: notes what is done on which stream."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.now = log, "main"

    class _Stream:
        def __init__(self, cuda: PretendCuda, name: str) -> None:
            self.cuda, self.name, self.events = cuda, name, 0

        def record_event(self) -> str:
            self.events += 1
            self.cuda.log.append(("event", self.events, self.name))
            return f"event {self.events} of {self.name}"

        def wait_event(self, event: str) -> None:
            self.cuda.log.append((self.name, "waits for", event))

    def set_device(self, device: torch.device) -> None:
        assert device.type == "cuda"

    def Stream(self, device: torch.device) -> Any:
        return self._Stream(self, "side")

    def current_stream(self, device: torch.device) -> Any:
        return self._Stream(self, "main")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(("on", stream.name))
        yield
        self.log.append(("off", stream.name))


def test_a_gpu_has_one_copy_ahead_on_a_stream_of_its_own_that_is_waited_for_by_event() -> None:
    log: list[Any] = []
    read: list[int] = []

    def batches() -> Iterator[Numbered]:
        for number in range(100):
            read.append(number)
            yield Numbered(number, log)

    def copied(number: int) -> list[Any]:
        return [
            ("on", "side"),
            ("copy", number),
            ("event", number + 1, "side"),
            ("off", "side"),
        ]

    def used(number: int) -> list[Any]:
        return [
            ("main", "waits for", f"event {number + 1} of side"),
            ("used on", number, "main"),
        ]

    gpu = torch.device("cuda:0")
    with Feed(batches(), gpu, side=SideStream(gpu, PretendCuda(log))) as feed:
        for number in range(3):
            assert feed.take(never).number == number
            # While the step is at work the next copy is under way, and no other.
            until(lambda number=number: ("event", number + 2, "side") in log)
            time.sleep(0.05)
            assert ("copy", number + 2) not in log
            assert read[-1] == number + 2  # which the host has, waiting for its turn
    copies = [one for one in log if one[0] == "copy"]
    assert copies == [("copy", number) for number in range(4)]
    for number in range(3):
        first = log.index(("copy", number)) - 1
        assert log[first : first + 4] == copied(number)
        first = log.index(used(number)[0])
        assert log[first : first + 2] == used(number)
        assert first > log.index(("event", number + 1, "side"))


def test_errors_and_stops_reach_the_step_on_a_gpu_too() -> None:
    log: list[Any] = []
    refused = threading.Event()

    def batches() -> Iterator[Numbered]:
        yield Numbered(0, log)
        refused.wait()
        raise DataError("the disk is gone")

    gpu = torch.device("cuda:0")
    with Feed(batches(), gpu, side=SideStream(gpu, PretendCuda(log))) as feed:
        assert feed.take(never).number == 0
        assert feed.take(lambda: True) is None
        refused.set()
        with pytest.raises(DataError, match="the disk is gone"):
            feed.take(never)
