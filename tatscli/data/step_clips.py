"""Which clips a training step was given: video, frames and crop of every view, drawn once more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from tatscli.data.dataset import Clips
from tatscli.data.order import training_order
from tatscli.recipe.derive import Schedule


def clips_of_step(
    clips: Clips, schedule: Schedule, rows: Sequence[int], *, seed: int, step: int, rank: int
) -> list[dict[str, Any]]:
    """Describe the views that a rank was given in an optimiser step. No video is read.

    Args:
        clips: The training clips.
        schedule: That of the training.
        rows: Row of the store of every view, as it was read: an unreadable video was replaced.
        seed: Seed of the training.
        step: Optimiser steps done before this one.
        rank: Number of the process.

    Returns:
        Of each view `id`, `row`, `epoch`, `view` (its number among those of the clip), `frames`
        (numbers of the stored frames), `crop` (top, left, height and width in stored pixels; None
        where the manifest does not say how large the pictures are) and `flip`.
    """
    order = training_order(schedule, seed=seed, start_step=step, rank=rank)
    keys = [key for batch in islice(order, schedule.accumulation) for key in batch]
    return [
        _view(clips, epoch, rows[number * schedule.repeats + repeat], repeat)
        for number, (epoch, _) in enumerate(keys)
        for repeat in range(schedule.repeats)
    ]


def _view(clips: Clips, epoch: int, row: int, repeat: int) -> dict[str, Any]:
    record = clips.store.rows[row]
    facts: dict[str, Any] = {
        "id": clips.name(row),
        "row": row,
        "epoch": epoch,
        "view": repeat,
        "frames": clips.draw(epoch, row).frames,
        "crop": None,
        "flip": None,
    }
    if record.width:
        view, _ = clips.look(epoch, row, repeat, (record.height, record.width))
        crop = {"top": view.top, "left": view.left}
        crop |= {"height": view.crop_height, "width": view.crop_width}
        facts |= {"crop": crop, "flip": view.flip}
    return facts
