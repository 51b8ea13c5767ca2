"""Batches for training and evaluation, the same from any number of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import BaseContext
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from tatscli.data.batch import Batch, collate
from tatscli.data.dataset import Clips, Key, Sample
from tatscli.data.order import training_order
from tatscli.data.views import EvalViews
from tatscli.errors import DataError, DecodeError, TatsError
from tatscli.recipe.derive import Schedule

TIMEOUT = 600.0  # seconds without a batch before a run stops; a slow disk is not yet a hang

_TRIES = 10  # unreadable neighbours in a row that mean the store is gone
_GRACE = 1000  # videos to see before a share of bad ones means something


def worker_count(workers: int | Literal["auto"], *, local_ranks: int = 1) -> int:
    """Return the loader processes of a rank: `auto` is one a core, shared by ranks, at most 8."""
    if workers != "auto":
        return workers
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores this process may use
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(8, max(1, cores // local_ranks))


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
) -> Iterator[Batch]:
    """Yield the micro-batches of a rank without end, from those of optimiser step `start_step` on.

    An unreadable video is replaced by the next row of the dataset that can be read. Training stops
    when the bad videos pass `max_bad_share` of those seen, counting at least a thousand as seen (or
    all there are); a single one is always put up with, unless the share is 0.

    Args:
        dataset: Training clips, indexed by (epoch, position).
        schedule: Derived for the length of the dataset.
        seed: Seed of the order.
        start_step: Optimiser step to begin with; nothing of the steps before is read.
        workers: Loader processes; 0 reads in this one.
        rank: Number of this process.
        world: Processes in all.
        max_bad_share: Share of unreadable videos that is put up with.
        on_bad: Told once of each unreadable video: row and reason.
        timeout: Seconds to wait for a batch.

    Raises:
        DataError: If too many videos are bad, one is too short for the recipe, or a worker hangs or
            dies.
    """
    if (schedule.videos, schedule.world) != (len(dataset.rows), world):
        raise ValueError(
            f"the schedule is for {schedule.videos} videos on {schedule.world} ranks,"
            f" not for {len(dataset.rows)} on {world}"
        )

    def order() -> Iterator[list[Key]]:
        return training_order(schedule, seed=seed, start_step=start_step, rank=rank)

    def name(key: Key) -> str:
        return dataset.name(dataset.rows[key[1]])

    reader = _Reader(dataset, bad="replace")
    bad: set[int] = set()
    seen = 0
    for batch in _batches(reader, order, name=name, workers=workers, timeout=timeout):
        seen += schedule.batch_per_device
        for row, reason in batch.bad:
            if row not in bad and on_bad is not None:
                on_bad(row, reason)
            bad.add(row)
        _check_share(len(bad), seen=seen, videos=schedule.videos, limit=max_bad_share)
        yield batch


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
        timeout: Seconds to wait for a batch.

    Raises:
        DataError: If a video cannot be read, which the message names, and `on_bad` is None; or if a
            worker hangs or dies.
    """
    wanted = dataset.items(rank=rank, world=world) if items is None else items

    def order() -> Iterator[list[int]]:
        return (list(wanted[first : first + batch]) for first in range(0, len(wanted), batch))

    def name(item: int) -> str:
        return dataset.name(dataset.row(item))

    reader = _Reader(dataset, bad="stop" if on_bad is None else "skip")
    for one in _batches(reader, order, name=name, workers=workers, timeout=timeout):
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
        timeout: Seconds to wait for a batch.

    Yields:
        The number of the batch among those of all ranks, and the batch.

    Raises:
        DataError: If many videos in a row cannot be read, or a worker hangs or dies.
    """
    positions = range(len(dataset.rows))
    numbers = range(rank, -(-len(positions) // batch), world)

    def order() -> Iterator[list[Key]]:
        return ([(0, at) for at in positions[n * batch : (n + 1) * batch]] for n in numbers)

    def name(key: Key) -> str:
        return dataset.name(dataset.rows[key[1]])

    reader = _Reader(dataset, bad="replace")
    batches = _batches(reader, order, name=name, workers=workers, timeout=timeout)
    for number, one in zip(numbers, batches, strict=True):
        if on_bad is not None:
            for row, reason in one.bad:
                on_bad(row, reason)
        yield number, one


class _Reader(Dataset[Batch | TatsError]):
    """Reads whole batches; a user's error is handed over as a value, lest it become a traceback."""

    def __init__(self, clips: Clips, *, bad: Literal["stop", "replace", "skip"]) -> None:
        self.clips = clips
        self.bad = bad

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

    def _read(self, key: Any, bad: list[tuple[int, str]]) -> list[Sample]:
        return self.clips[key]

    def _read_or_skip(self, item: int, bad: list[tuple[int, str]]) -> list[Sample]:
        assert isinstance(self.clips, EvalViews)
        try:
            return self.clips[item]
        except DataError as error:
            bad.append((self.clips.row(item), error.message))
            return []

    def _read_or_replace(self, key: Key, bad: list[tuple[int, str]]) -> list[Sample]:
        epoch, position = key
        rows = self.clips.rows
        tries = min(_TRIES, len(rows))
        for neighbour in range(position, position + tries):
            try:
                return self.clips[epoch, neighbour % len(rows)]
            except DecodeError as error:
                bad.append((rows[neighbour % len(rows)], error.message))
        raise DataError(
            f"{tries} videos in a row cannot be read, the last because {bad[-1][1]}",
            hint="check that the store is whole and its disk is there",
        )


def _batches(
    reader: _Reader,
    order: Callable[[], Iterator[list[Any]]],
    *,
    name: Callable[[Any], str],
    workers: int,
    timeout: float,
) -> Iterator[Batch]:
    """Read batches in order; torch gives a worker one thread and deals batches out in turn."""
    on_cuda = torch.cuda.is_initialized()
    loader = DataLoader(
        reader,
        batch_size=None,  # the reader makes whole batches
        sampler=order(),
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=on_cuda,
        timeout=timeout if workers else 0,
        worker_init_fn=_start_worker if workers else None,
        multiprocessing_context=_context(on_cuda=on_cuda) if workers else None,
        generator=torch.Generator(),  # its own, so that the global random state stays as it is
    )
    arriving = iter(loader)
    try:
        for number, keys in enumerate(order()):
            try:
                batch = next(arriving)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                if not reason.startswith("DataLoader"):
                    raise
                files = ", ".join(f"`{name(key)}`" for key in keys[:3])
                batch = DataError(
                    f"the batch with {files} did not arrive from loader worker"
                    f" {number % workers}: {reason}",
                    hint="`data.workers=0` shows where it stops; workers killed by a signal often"
                    " lack (shared) memory",
                )
            if isinstance(batch, TatsError):
                raise batch  # out here, without torch's traceback, which would keep the workers
            yield batch
    finally:
        del arriving  # ends the workers now


def _as_is(batch: Any) -> Any:
    return batch


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
    """Leave the process group: Ctrl-C is for the main process, which ends its workers itself."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _check_share(bad: int, *, seen: int, videos: int, limit: float) -> None:
    allowed = max(1.0, limit * min(videos, max(seen, _GRACE))) if limit else 0.0
    if bad > allowed:
        raise DataError(
            f"{bad} of the {min(seen, videos)} videos seen cannot be read,"
            f" more than `data.max_bad_share: {limit:g}` allows",
            hint="prepare the store again, or raise `data.max_bad_share`",
        )
