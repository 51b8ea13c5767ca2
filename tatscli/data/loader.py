"""Batches for training and evaluation, the same from any number of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any, Literal

import torch

from tatscli.data.batch import Batch
from tatscli.data.dataset import Clips
from tatscli.data.order import training_order
from tatscli.data.reading import AHEAD, Batches, BatchReader
from tatscli.data.views import EvalViews
from tatscli.data.workers import Workers
from tatscli.errors import DataError
from tatscli.files import in_bytes
from tatscli.machine import free_memory, usable_cores
from tatscli.recipe.derive import Schedule

TIMEOUT = 600.0
"""Default seconds for one clip before a run stops; a slow disk is not yet a hang."""

_LAST_WORDS = 25  # seconds that a worker serves on after SIGTERM
_SHARE = 0.8  # of the free memory that batches on their way may take
_GRACE = 1000  # videos to see before a share of bad ones means something


def worker_count(workers: int | Literal["auto"], *, local_ranks: int = 1) -> int:
    """Return the loader processes of a rank: `auto` is one a core, shared by ranks, at most 8; on
    Windows, where batches cannot be passed on as they are here, none."""
    if workers != "auto":
        return workers
    if sys.platform == "win32":
        return 0
    return min(8, max(1, usable_cores() // local_ranks))


def training_batches(
    dataset: Clips,
    schedule: Schedule,
    *,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    max_bad_share: float = 0.01,
    on_bad: Callable[[int, str], None] | None = None,
    timeout: float = TIMEOUT,
    warn: Callable[[str], object] | None = None,
) -> Batches:
    """Return the micro-batches of a rank without end, from those of optimiser step `start_step` on.

    An unreadable video is replaced by the next row of the dataset that can be read. Training stops
    when the bad videos pass `max_bad_share` of those seen, counting at least a thousand as seen (or
    all there are); a single one is always tolerated, unless the share is 0.

    Args:
        dataset: Training clips, indexed by (epoch, position).
        schedule: Derived for the length of the dataset.
        seed: Seed of the order.
        start_step: Optimiser step to begin with; nothing of the steps before is read.
        workers: Loader processes; 0 reads in this one.
        rank: Number of this process.
        world: Processes in all.
        max_bad_share: Share of unreadable videos that is tolerated.
        on_bad: Told once of each unreadable video: row and reason.
        timeout: Seconds that a worker may take over one clip.
        warn: Told of workers that take long, and of fewer of them than wanted.

    Raises:
        DataError: If too many videos are bad, one is too short for the recipe, or a worker hangs or
            dies.
    """
    if (schedule.videos, schedule.world) != (len(dataset.rows), world):
        raise ValueError(
            f"the schedule is for {schedule.videos} videos on {schedule.world} ranks,"
            f" not for {len(dataset.rows)} on {world}"
        )

    bad: set[int] = set()
    seen = 0

    def check(batch: Batch) -> None:
        nonlocal seen
        seen += schedule.batch_per_device
        for row, reason in batch.bad:
            if row not in bad and on_bad is not None:
                on_bad(row, reason)
            bad.add(row)
        _check_share(len(bad), seen=seen, videos=schedule.videos, limit=max_bad_share)

    return _batches(
        BatchReader(dataset, bad="replace"),
        training_order(schedule, seed=seed, start_step=start_step, rank=rank),
        workers=workers,
        batch_bytes=schedule.batch_per_device * schedule.repeats * dataset.view_bytes,
        timeout=timeout,
        warn=warn,
        check=check,
    )


def evaluation_batches(
    dataset: EvalViews,
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    items: Sequence[int] | None = None,
    on_bad: Callable[[int, str], object] | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[Batch]:
    """Yield every view of this rank's videos once, in order; the last batch may be smaller.

    A rank takes every `world`-th video with all its views. Nothing is repeated to even out the
    ranks, and a bad video is never replaced.

    Args:
        dataset: The views to score.
        batch: Views in a batch.
        workers: Loader processes; 0 reads in this one.
        rank: Number of this process.
        world: Processes in all.
        items: Which views, in order; None takes all of this rank's videos.
        on_bad: Told of each view that cannot be read, row and reason, and its batch comes without
            it; other views of that video may have been yielded before. None stops at the first.
        timeout: Seconds that a worker may take over one clip.

    Raises:
        DataError: If a video cannot be read, which the message names, and `on_bad` is None; or if a
            worker hangs or dies.
    """
    wanted = dataset.items(rank=rank, world=world) if items is None else items
    batches = _batches(
        BatchReader(dataset, bad="stop" if on_bad is None else "skip"),
        (list(wanted[first : first + batch]) for first in range(0, len(wanted), batch)),
        workers=workers,
        batch_bytes=batch * dataset.view_bytes,
        timeout=timeout,
    )
    with closing(batches):
        for one in batches:
            for row, reason in one.bad:
                if on_bad is not None:
                    on_bad(row, reason)
            if len(one.row_B):
                yield one


def fixed_batches(
    dataset: Clips,
    *,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    on_bad: Callable[[int, str], None] | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[tuple[int, Batch]]:
    """Yield every clip of the first pass once, in batches that are the same on any number of ranks.

    A rank takes every `world`-th batch. An unreadable video is replaced by the next one.

    Args:
        dataset: Training clips, indexed by (epoch, position).
        batch: Videos in a batch; the last may be smaller.
        workers: Loader processes; 0 reads in this one.
        rank: Number of this process.
        world: Processes in all.
        on_bad: Told of each unreadable video: row and reason.
        timeout: Seconds that a worker may take over one clip.

    Yields:
        The number of the batch among those of all ranks, and the batch.

    Raises:
        DataError: If many videos in a row cannot be read, or a worker hangs or dies.
    """
    positions = range(len(dataset.rows))
    numbers = range(rank, -(-len(positions) // batch), world)

    batches = _batches(
        BatchReader(dataset, bad="replace"),
        ([(0, at) for at in positions[n * batch : (n + 1) * batch]] for n in numbers),
        workers=workers,
        batch_bytes=batch * dataset.view_bytes,
        timeout=timeout,
    )
    with closing(batches):
        for number, one in zip(numbers, batches, strict=True):
            if on_bad is not None:
                for row, reason in one.bad:
                    on_bad(row, reason)
            yield number, one


def _batches(
    reader: BatchReader,
    order: Iterator[list[Any]],
    *,
    workers: int,
    batch_bytes: int,
    timeout: float,
    warn: Callable[[str], object] | None = None,
    check: Callable[[Batch], None] = lambda batch: None,
) -> Batches:
    """Begin to read batches, here or in workers, which start at once."""
    on_cuda, crew = torch.cuda.is_initialized(), None
    if workers:
        crew = Workers(
            reader,
            _affordable(workers, batch_bytes, warn),
            context=_context(on_cuda=on_cuda) or multiprocessing.get_context(),
            start=_start_worker,
            name=reader.clips.name,
            timeout=timeout,
            warn=warn,
        )
    return Batches(reader, order, crew, check=check, pin=on_cuda)


def _affordable(workers: int, batch_bytes: int, warn: Callable[[str], object] | None) -> int:
    """Return how many workers there is memory for, with a warning if fewer."""
    free = free_memory()
    each = AHEAD * batch_bytes
    if free is None or warn is None or (workers + 1) * each <= _SHARE * free:
        return workers
    fewer = max(1, int(_SHARE * free / each) - 1)
    if fewer < workers:
        warn(
            f"using {fewer} instead of {workers} loader workers: {AHEAD} batches of each would take"
            f" {in_bytes(workers * each)}, and {in_bytes(free)} of memory are free"
        )
    return min(workers, fewer)


def _context(*, on_cuda: bool) -> BaseContext | None:
    """Choose how workers start.

    Forking takes hundredths of a second and shares the manifest. It is safe here as long as CUDA is
    not in use: workers compute on one thread, so they never touch the thread pools a fork leaves
    behind. With CUDA they come from a fork server, which imports torch once (2 s) and serves every
    later loader. Elsewhere than on Linux: the platform's way.
    """
    if sys.platform != "linux":
        return None
    if not on_cuda:
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms.v2"])
    return context


def _start_worker(_: int) -> None:
    """Leave signals to the main process, which ends its workers itself.

    Schedulers send signals to every process of a job. Workers ignore those that ask for a
    checkpoint; after SIGTERM they continue for `_LAST_WORDS` seconds, in which the main process may
    finish a step. A second SIGTERM ends them at once, and so does the end of the main process.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_soon)


def _end_soon(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(_LAST_WORDS)


def _check_share(bad: int, *, seen: int, videos: int, limit: float) -> None:
    allowed = max(1.0, limit * min(videos, max(seen, _GRACE))) if limit else 0.0
    if bad > allowed:
        raise DataError(
            f"{bad} of the {min(seen, videos)} videos seen cannot be read,"
            f" more than `data.max_bad_share: {limit:g}` allows",
            hint="prepare the store again, or raise `data.max_bad_share`",
        )
