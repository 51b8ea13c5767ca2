"""Drawing labelled videos: few-shot subsets, and held-out videos for choosing a probe.

Shapes: R videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tatscli.errors import DataError
from tatscli.seeding import random_of


def draw_shots(
    rows: Sequence[int],
    labels: Sequence[int],
    shots: int,
    *,
    seed: int,
    names: Sequence[str],
    key: str = "evaluate.shots",
    skips_empty: bool = False,
) -> list[int]:
    """Draw `shots` rows of each class; those of fewer shots are among those of more.

    Args:
        rows: Rows to draw from.
        labels: Their classes.
        shots: Rows per class.
        seed: Seed of the draw.
        names: Class names.
        key: The recipe key of the number, for messages.
        skips_empty: Accept classes without any row.

    Returns:
        The drawn rows, in their original order.

    Raises:
        DataError: If a class has too few.
    """
    by_class: dict[int, list[int]] = {label: [] for label in range(len(names))}
    for row, label in zip(rows, labels, strict=True):
        by_class[label].append(row)
    short = {
        label: len(found)
        for label, found in by_class.items()
        if len(found) < shots and (found or not skips_empty)
    }
    if short:
        label = min(short, key=lambda one: short[one])
        raise DataError(
            f"`{key}: {shots}` is more than the videos of {len(short)} of {len(names)} classes; "
            f"`{names[label]}` has {short[label]}",
            hint=f"the smallest class allows `{key}={short[label]}`"
            if short[label]
            else "choose a `split` that has videos of every class",
        )
    chosen: set[int] = set()
    for label, found in by_class.items():
        random_of("shots", seed, label).shuffle(found)
        chosen.update(found[:shots])
    return [row for row in rows if row in chosen]


def hold_out(
    label_R: Tensor, share: float, *, seed: int, source_R: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hold out a share of the videos of each class: at least one of a class of two.

    Segments of one file stay together; the file counts for the class of its first segment.

    Args:
        label_R: Class of each video.
        share: Share to hold out.
        seed: Seed of the draw.
        source_R: Number of the file each was cut from; None if each has its own.

    Returns:
        Indices of the videos to train on and of those held out, ascending.

    Raises:
        DataError: If no class has a second video.
    """
    sources = range(len(label_R)) if source_R is None else source_R.tolist()
    segments: dict[int, list[int]] = defaultdict(list)
    for place, source in enumerate(sources):
        segments[source].append(place)
    by_class: dict[int, list[list[int]]] = defaultdict(list)
    for places in segments.values():
        by_class[int(label_R[places[0]])].append(places)
    held: list[int] = []
    for label, files in by_class.items():
        random_of("held out", seed, label).shuffle(files)
        count = min(len(files) - 1, max(1, round(share * len(files))))
        held += [place for places in files[:count] for place in places]
    if not held:
        raise DataError(
            "no video can be held out to choose learning rate and weight decay: each class has one "
            "labelled video",
            hint="give a single rate and decay, such as `evaluate.probe.rates=[1e-3] "
            "evaluate.probe.decays=[0.01]`, or raise `evaluate.shots`",
        )
    kept = torch.ones(len(label_R), dtype=torch.bool)
    kept[held] = False
    return kept.nonzero().flatten(), (~kept).nonzero().flatten()
