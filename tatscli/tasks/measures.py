"""From scores of views to the numbers of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tatscli.errors import CheckpointError
from tatscli.evaluation.calibration import calibration
from tatscli.evaluation.features import source_numbers
from tatscli.evaluation.intervals import accuracy_intervals
from tatscli.evaluation.scores import (
    ViewScores,
    by_duration,
    group_accuracy,
    merge_views,
    summarise,
)
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup
from tatscli.tasks.results import VideoScores


def measures(
    views: ViewScores,
    recipe: Recipe,
    store: Store,
    names: list[str],
    *,
    groups: Mapping[str, ClassGroup],
) -> tuple[VideoScores, dict[str, Any]]:
    """Merge the views of each video, and measure how good the scores are.

    Args:
        views: Scores of every view.
        recipe: `run.seed` seeds the bootstrap, `evaluate.durations` divides the videos by length.
        store: Their store.
        names: Class names.
        groups: The groups that classes are combinations of, if any.

    Returns:
        The scores of each video, and the entries for the result.

    Raises:
        CheckpointError: If scores are not finite.
    """
    videos = merge_views(views)
    _refuse_not_finite(videos, store)
    rows = videos.row_V.tolist()
    scores = VideoScores(
        [store.rows[row].id for row in rows],
        names,
        videos.label_V.numpy(),
        videos.score_VL.numpy(),
        videos.row_V.numpy(),
        source_numbers(store, rows).numpy(),
    )
    intervals = accuracy_intervals(
        scores.label_R, scores.right_R, scores.source_R, seed=recipe.run.seed
    )
    measured = {**summarise(videos, names), **intervals, **calibration(videos)}
    if groups:
        members = {name: group.of for name, group in groups.items()}
        measured["group_top1"] = group_accuracy(videos, members)
    if recipe.evaluate.durations is not None:
        seconds_R = [store.rows[row].duration for row in rows]
        measured |= by_duration(videos, seconds_R, recipe.evaluate.durations)
    return scores, measured


def _refuse_not_finite(videos: ViewScores, store: Store) -> None:
    """Refuse merged scores that are not finite: they would still name a class."""
    finite_R = videos.score_VL.isfinite().all(dim=1)
    if not finite_R.all():
        row = int(videos.row_V[torch.nonzero(~finite_R)[0]])
        raise CheckpointError(
            f"the scores of `{store.rows[row].id}` are not finite",
            hint="take an earlier checkpoint of the run (`RUN/checkpoints/step-...`)",
        )
