"""Reading ahead: the order of reading one by one, few things waiting, errors where they belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tatscli.data.ahead import read_ahead


def count_to(number: int) -> Iterator[tuple[int, int]]:
    for one in range(number):
        time.sleep(0.001 * (number % 3))
        yield number, one


@pytest.mark.parametrize("threads", [0, 1, 3, 20])
def test_the_order_is_that_of_reading_one_by_one(threads: int) -> None:
    sources = [5, 0, 2, 7, 1, 3]
    found = [list(stream) for stream in read_ahead(sources, count_to, threads=threads)]
    assert found == [[(number, one) for one in range(number)] for number in sources]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_where_its_source_is_read(threads: int) -> None:
    def read(number: int) -> Iterator[int]:
        yield number
        if number == 1:
            raise ValueError("broken")

    found = []
    for stream in read_ahead(range(3), read, threads=threads):
        try:
            found += list(stream)
        except ValueError as error:
            found.append(str(error))
    assert found[-2:] == ["broken", 2]


def test_no_more_waits_than_was_allowed() -> None:
    made: list[int] = []

    def read(number: int) -> Iterator[int]:
        for one in range(50):
            made.append(one)
            yield one

    streams = read_ahead(range(4), read, threads=2, depth=3)
    first = next(streams)
    assert next(first) == 0
    time.sleep(0.2)
    assert len(made) <= 2 * (3 + 1) + 1  # of each: three in the queue, one in the hand
    streams.close()


def test_whoever_stops_early_leaves_no_thread_behind() -> None:
    def read(number: int) -> Iterator[int]:
        yield from range(1000)

    before = {*threading.enumerate()}
    streams = read_ahead(range(9), read, threads=3)
    next(next(streams))
    assert {*threading.enumerate()} - before
    streams.close()
    assert not {*threading.enumerate()} - before
