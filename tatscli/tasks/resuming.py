"""Which checkpoint `--resume` continues, and what may differ from the previous session."""

from __future__ import annotations

import re
from pathlib import Path

from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.folders import has_checkpoints
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError, UsageError
from tatscli.recipe.derive import Schedule
from tatscli.recipe.keys import differences
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.schema import Run
from tatscli.store.reader import Store

FIXED = ("run.seed", "run.watch", "run.watch.share")
"""Keys of `run` that affect the result."""

FREE_TO_CHANGE = (
    "run.",
    "evaluate.",
    "data.workers",
    "data.timeout",
    "data.resize_on",
    "data.decode",
    "data.cache",
    "data.max_bad_share",
    "data.store",
)
"""Keys that may change on resuming. The store may move; its fingerprint is compared."""
MOVABLE = re.compile(
    r"targets\.\d+\.(run|transformers|weights)|(targets\.\d+|predict)\.tokenizer\.path"
    r"|tokenizer\.perceptual\.weights"
)
"""Paths of frozen networks, which may also move; their digests are compared."""


def checkpoint_to_resume(folder: Path, store: Store, here: Session) -> Checkpoint:
    """Return the last intact checkpoint of a run that was trained on this store.

    The main process looks for all: other hosts may see a shared disk with a delay.

    Raises:
        CheckpointError: If there is none that is intact.
        UsageError: If the store is another.
    """
    if here.world.main and not has_checkpoints(folder):
        raise CheckpointError(
            f"`{folder}` stopped before its first checkpoint: there is nothing to resume",
            hint="start it again with `--resume auto` or `--overwrite`; `run.save_every` sets how "
            "often checkpoints are saved",
        )
    found = [find_checkpoint(folder, say=here.reporter.warn)] if here.world.main else []
    checkpoint = distributed.gathered(found)[0]
    if checkpoint.meta.get("store_fingerprint") != store.fingerprint():
        raise UsageError(
            f"the store `{store.path}` is not the one that `{folder}` was trained on: "
            "videos or settings have changed",
            hint="start a new run from these weights with `--init` and another `--out`",
        )
    return checkpoint


def is_over(checkpoint: Checkpoint | None, schedule: Schedule, run: Run) -> bool:
    """Whether a run that is to be resumed has no step left, nor a pass to score."""
    last = min(schedule.total_steps, run.max_steps or schedule.total_steps)
    return (
        checkpoint is not None
        and checkpoint.step >= last
        and not checkpoint.meta.get("unscored", False)
    )


def refuse_other_recipe(folder: Path, loaded: LoadedRecipe) -> None:
    """Refuse a recipe that differs from the run's in what affects the result.

    Raises:
        UsageError: If it does.
    """
    # Runs of earlier versions may have kept a single checkpoint, which is refused now.
    kept = load_recipe(folder / "recipe.yaml", ["run.keep=2"], stored=True)
    before = kept.recipe.model_dump(mode="json")
    now = loaded.recipe.model_dump(mode="json")
    differing = [
        f"`{key}: {new}` (the run has `{old}`)"
        for key, old, new in differences(before, now)
        if key in FIXED or not (key.startswith(FREE_TO_CHANGE) or MOVABLE.fullmatch(key))
    ]
    if differing:
        raise UsageError(
            f"the recipe differs from the run in `{folder}`: " + ", ".join(differing),
            hint="`run.*` (but `run.seed` and `run.watch.share`), `evaluate.*`, `data.workers`, "
            "`data.timeout`, `data.cache*`, `data.resize_on`, `data.decode`, `data.max_bad_share` "
            "and the places of the store and of frozen networks may change on `--resume`; "
            "to start a new run from these weights, use `--init` and another `--out`",
        )


def warn_of_other_processes(checkpoint: Checkpoint, here: Session) -> None:
    """Warn of what changes when a run continues with another number of processes."""
    before = checkpoint.meta.get("processes", here.world.size)
    if before != here.world.size:
        here.reporter.warn(
            f"the run was trained with {before} processes and continues with {here.world.size}: "
            "every step sees the same videos, but dropout and drop path differ, and so does the "
            "rounding of sums"
        )


def warn_of_other_draws(checkpoint: Checkpoint, here: Session) -> None:
    """Warn that a run of an earlier version continues with other masks."""
    if checkpoint.meta.get("draws") != Draws.version:
        here.reporter.warn(
            "the checkpoint is from a version that draws masks from the seed differently: "
            "the run continues with different masks"
        )
