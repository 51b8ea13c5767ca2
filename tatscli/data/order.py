"""The order in which training sees videos: a function of seed and step, so any can be first."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tatscli.data.dataset import Key
from tatscli.recipe.derive import Schedule
from tatscli.seeding import seed_of


def permutation(videos: int, *, seed: int, epoch: int) -> list[int]:
    """Return the shuffle of one pass over the videos, the same on every rank."""
    generator = torch.Generator().manual_seed(seed_of("order", seed, epoch))
    return torch.randperm(videos, generator=generator).tolist()


def training_order(
    schedule: Schedule, *, seed: int, start_step: int = 0, rank: int = 0
) -> Iterator[list[Key]]:
    """List the items of each micro-batch of a rank, from `start_step` on, without end.

    A step takes the next `total_batch` videos of the epoch's shuffle and deals them out in turn,
    one micro-batch to every rank, then the next: a step holds the same videos however many devices
    share it. What does not fill a step at the end of an epoch is dropped. Where all videos together
    do not fill one step, a step goes on into the shuffles of the following passes; an item's epoch
    is then the number of its pass, so that no view is drawn twice.
    """
    shuffled: tuple[int, list[int]] = -1, []
    step = start_step
    while True:
        keys: list[Key] = []
        for epoch, start, stop in _parts(schedule, step):
            if shuffled[0] != epoch:
                shuffled = epoch, permutation(schedule.videos, seed=seed, epoch=epoch)
            keys += [(epoch, position) for position in shuffled[1][start:stop]]
        for micro in range(schedule.accumulation):
            first = (micro * schedule.world + rank) * schedule.batch_per_device
            yield keys[first : first + schedule.batch_per_device]
        step += 1


def _parts(schedule: Schedule, step: int) -> Iterator[tuple[int, int, int]]:
    """Cut a step into the stretches of the shuffles it takes: epoch, start, stop."""
    total, videos = schedule.total_batch, schedule.videos
    if videos >= total:
        epoch, number = divmod(step, videos // total)
        yield epoch, number * total, (number + 1) * total
        return
    position, end = step * total, (step + 1) * total
    while position < end:
        epoch, start = divmod(position, videos)
        stop = min(videos, start + end - position)
        yield epoch, start, stop
        position += stop - start
