"""Measuring: sides that take turns in processes of their own, wall time beside processor time.

Every side has a process of its own for as long as the benchmark runs, so that no library meets
another one's FFmpeg, and what a process takes to start counts only where it belongs to the work.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Taken:
    """What a run took.

    Attributes:
        wall: Seconds by the clock.
        cpu: Processor seconds of all processes and threads.
        results: What the function returned for each item.
    """

    wall: float
    cpu: float
    results: list[Any]


class Crew:
    """Processes, tied to some cores, that work off items together.

    Args:
        processes: How many.
        cores: On how many cores.
    """

    def __init__(self, processes: int = 1, *, cores: int) -> None:
        self._pool = ProcessPoolExecutor(
            processes,
            multiprocessing.get_context("spawn"),
            initializer=os.sched_setaffinity,
            initargs=(0, CORES[:cores]),
        )

    def run(self, work: Callable[..., Any], items: Iterable[Any]) -> Taken:
        """Run a function of a module on every item and wait."""
        begun = time.perf_counter()
        done = list(self._pool.map(_timed, ((work, item) for item in items)))
        wall = time.perf_counter() - begun
        return Taken(wall, sum(cpu for cpu, _ in done), [result for _, result in done])

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def take_turns(
    sides: Mapping[str, Callable[[], Taken]], *, rounds: int, warm_up: bool = True
) -> tuple[dict[str, dict[str, float]], dict[str, list[Any]]]:
    """Run all sides one after the other, several times.

    Args:
        sides: What to run, by name.
        rounds: How often.
        warm_up: Whether a round that does not count goes first.

    Returns:
        Seconds of each side, and what each returned in the last round. `wall` and `cpu` are
        medians; `best` is the shortest wall time, which other programs disturb least.
    """
    taken: dict[str, list[Taken]] = {name: [] for name in sides}
    for number in range(rounds + warm_up):
        for name, run in sides.items():
            one = run()
            if number >= warm_up:
                taken[name].append(one)
    medians = {
        name: {
            "wall": statistics.median(one.wall for one in runs),
            "cpu": statistics.median(one.cpu for one in runs),
            "best": min(one.wall for one in runs),
        }
        for name, runs in taken.items()
    }
    return medians, {name: runs[-1].results for name, runs in taken.items()}


def ratios(
    medians: Mapping[str, Mapping[str, float]], ours: str, others: Iterable[str]
) -> dict[str, dict[str, float]]:
    """Return what the others take by what we take."""
    return {
        name: {clock: round(medians[name][clock] / medians[ours][clock], 2) for clock in other}
        for name in others
        if (other := medians.get(name))
    }


def rounded(medians: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return medians as they are printed."""
    return {
        name: {clock: round(seconds, 4) for clock, seconds in one.items()}
        for name, one in medians.items()
    }


def installed(*modules: str) -> tuple[set[str], dict[str, str]]:
    """Return which peers are there, and a message for each one that is not."""
    there = {module for module in modules if find_spec(module) is not None}
    missing = {
        module: "skipped: not installed; `pip install -e '.[bench]'`"
        for module in modules
        if module not in there
    }
    return there, missing


def load() -> float:
    """Return how many processes wanted a core in the last minute, ours included."""
    return round(os.getloadavg()[0], 2)


def _timed(task: tuple[Callable[..., Any], Any]) -> tuple[float, Any]:
    work, item = task
    before = _processor_seconds()
    result = work(item)
    return _processor_seconds() - before, result


def _processor_seconds() -> float:
    """Return what this process and those it has waited for have taken."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
