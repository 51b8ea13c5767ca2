"""The largest batch that fits, by bisection with real steps.

On CUDA a batch that does not fit raises an error, which is caught, and its memory is freed. On a
CPU each batch is tried in its own process, which is killed when it uses more memory than allowed:
so nothing remains of it, and the peak is that of this batch alone.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tatscli.console import Reporter
from tatscli.engine.ceiling import forget_peak_memory, peak_memory
from tatscli.engine.session import session
from tatscli.errors import TatsError
from tatscli.machine import end_with_parent
from tatscli.recipe.load import LoadedRecipe
from tatscli.tasks.rehearsal import Rehearsal, StageName, open_store, rehearsed

Probe = Callable[[int], float | None]
"""Maps a batch to the bytes at its peak, None where it does not fit."""

_LOOK_EVERY = 0.01  # seconds between two looks at a process's memory
_GUESSES = 6  # batches that a line may choose
_LEAP = 16  # times as large as before, at most


def largest_batch(
    probe: Probe, most: int, *, first: int = 1, limit: float | None = None
) -> tuple[int, dict[int, float | None]]:
    """Find the largest batch that fits, where all that are smaller than one that fits do as well.

    Args:
        probe: Tries a batch.
        most: The largest of use.
        first: The smallest of use.
        limit: What the peak must not exceed. Memory grows with the batch nearly in a straight line,
            so with this the line through two batches chooses the next; without, and where the line
            is wrong, doubling and halving do.

    Returns:
        The batch, 0 where not even the first fits; and what was tried.
    """
    tried: dict[int, float | None] = {}
    fits, fails = first - 1, most + 1
    while fails - fits > 1:
        batch = _next(fits, fails, tried, limit) if tried else min(first, most)
        tried[batch] = probe(batch)
        if tried[batch] is None:
            fails = batch
        else:
            fits = batch
    return (fits if fits in tried else 0), tried


def _next(fits: int, fails: int, tried: dict[int, float | None], limit: float | None) -> int:
    """Choose what to try between the largest batch that fits and the smallest that does not."""
    failed = any(peak is None for peak in tried.values())
    halfway = (fits + fails) // 2 if failed else min(2 * max(fits, 1), fails - 1)
    points = sorted((one, peak) for one, peak in tried.items() if peak is not None)[-2:]
    if limit is None or len(points) < 2 or len(tried) > _GUESSES:
        return halfway
    (low, lower), (high, higher) = points
    if higher <= lower:
        return halfway
    guess = high + int((limit - higher) * (high - low) / (higher - lower))
    # Two small batches say little of a large one.
    guess = min(max(guess, fits + 1), _LEAP * fits)
    return guess if guess < fails else (halfway if failed else fails - 1)


def probe_device(rehearsal: Rehearsal) -> Probe:
    """Return what tries a batch on the GPU of a rehearsal."""
    device = rehearsal.here.device

    def probe(batch: int) -> float | None:
        forget_peak_memory(device)
        try:
            rehearsal.run(batch, steps=2)  # the first makes the moments of the optimiser
            return peak_memory(device)
        except RuntimeError as error:  # of CUDA a class of its own, of MPS this
            if "out of memory" not in str(error):
                raise
            return None
        finally:
            rehearsal.free()

    return probe


def probe_cpu(loaded: LoadedRecipe, name: StageName, limit: float) -> Probe:
    """Return what tries a batch in a process that may take `limit` bytes."""

    def probe(batch: int) -> float | None:
        context = multiprocessing.get_context("spawn")  # a fork would begin with our own memory
        answers, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, loaded, name, batch))
        child.start()
        theirs.close()
        try:
            return _wait_for(child.pid, answers, limit)
        finally:
            child.kill()
            child.join()

    return probe


def _wait_for(pid: int | None, answers: Connection, limit: float) -> float | None:
    """Return the peak a child reports; None where it passes the limit, or the system ends it."""
    while not answers.poll(_LOOK_EVERY):
        if _resident(pid) > limit:
            return None
    try:
        answer = answers.recv()
    except EOFError:  # ended from outside: out of memory, for all that can be known
        return None
    if isinstance(answer, TatsError):
        raise answer
    if isinstance(answer, str):
        raise RuntimeError(f"a step of the benchmark failed in its own process: {answer}")
    return float(answer) if answer <= limit else None


def _child(pipe: Connection, loaded: LoadedRecipe, name: StageName, batch: int) -> None:
    """Take steps, and send the peak of this process's memory, or the error."""
    end_with_parent()
    with suppress(OSError):  # whoever runs out of memory here shall be this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        with session(loaded.recipe.run, Reporter(quiet=True), joins=False) as here:
            store, _ = open_store(loaded)
            rehearsal = Rehearsal(rehearsed(loaded, name, here, store), here)
            # A small one first, so that the moments of the optimiser are there.
            for videos in dict.fromkeys((min(batch, 2), batch)):
                rehearsal.run(videos)
        pipe.send(peak_memory(torch.device("cpu")))
    except TatsError as error:
        pipe.send(error)
    except MemoryError:
        pipe.send(float("inf"))
    except RuntimeError as error:
        # On a CPU torch has no class of its own for it.
        pipe.send(float("inf") if "allocate" in str(error) else str(error))


def _resident(pid: int | None) -> float:
    """Return the memory that a process has now, in bytes; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
