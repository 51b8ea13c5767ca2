"""What every training shares: its run folder, resuming, its data stream, and what a checkpoint
says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tatscli import __version__
from tatscli.data.batch import Batch
from tatscli.data.dataset import Clips
from tatscli.data.loader import training_batches, worker_count
from tatscli.engine import distributed
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.run import describe_run, open_run, write_run_json
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError, UsageError
from tatscli.files import write_safely
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe, dump_recipe, load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store

FREE_TO_CHANGE = ("run.", "evaluate.", "data.workers", "data.max_bad_share", "data.store")
"""Keys that may change on resuming. The store may move: its fingerprint is compared."""


def begin_run(
    here: Session,
    folder: Path,
    loaded: LoadedRecipe,
    schedule: Schedule,
    store: Store,
    *,
    resume: bool,
    overwrite: bool,
) -> Checkpoint | None:
    """Open the run folder and describe the run in it; return the checkpoint to resume from, if any.

    Raises:
        UsageError: If the folder is in use, or the recipe to resume differs from the run's.
        CheckpointError: If there is nothing to resume.
    """
    checkpoint = None
    if here.world.main:
        open_run(folder, resume=resume, overwrite=overwrite)
    distributed.wait()
    if resume:
        _refuse_other_recipe(folder, loaded)
        checkpoint = _checkpoint_to_resume(folder, store)
    if here.world.main:
        write_safely(folder / "recipe.yaml", dump_recipe(loaded.recipe))
        facts = describe_run(
            recipe=loaded.name,
            device=here.reasons["device"],
            precision=here.reasons["precision"],
            processes=here.world.size,
            derived=asdict(schedule),
            store=str(store.path),
            store_fingerprint=store.fingerprint(),
            resumed_at=checkpoint.step if checkpoint else None,
        )
        write_run_json(folder, facts)
    distributed.wait()
    return checkpoint


def checkpoint_meta(kind: str, loaded: LoadedRecipe, store: Store, **facts: Any) -> dict[str, Any]:
    """Return what every checkpoint of a training says of itself."""
    return {
        "kind": kind,
        "name": loaded.name,
        "recipe": loaded.recipe.model_dump(mode="json"),
        "store": str(store.path),
        "store_fingerprint": store.fingerprint(),
        "tats": __version__,
        "torch": torch.__version__,
        **facts,
    }


def data_stream(
    clips: Clips, schedule: Schedule, recipe: Recipe, store: Store, here: Session
) -> Callable[[int], Iterator[Batch]]:
    """Return the function from an optimiser step to the endless micro-batches that follow it."""

    def warn(row: int, reason: str) -> None:
        here.reporter.warn(f"`{store.rows[row].id}` cannot be read and is replaced: {reason}")

    def batches(start: int) -> Iterator[Batch]:
        return training_batches(
            clips,
            schedule,
            seed=recipe.run.seed,
            start_step=start,
            workers=worker_count(recipe.data.workers, local_ranks=here.world.local_size),
            rank=here.world.rank,
            world=here.world.size,
            max_bad_share=recipe.data.max_bad_share,
            on_bad=warn,
        )

    return batches


def batch_rows(
    total: int, per_device: int, accumulation: int, *, world: int
) -> list[tuple[str, str]]:
    """Return how the total batch comes about, for people."""
    parts = f"{per_device} videos x {world} devices x {accumulation} accumulated"
    return [("total batch", f"{total} = {parts}")]


def schedule_rows(schedule: Schedule) -> list[tuple[str, str]]:
    """Return the derived numbers and their reasons, for people."""
    s = schedule
    return [
        *batch_rows(s.total_batch, s.batch_per_device, s.accumulation, world=s.world),
        ("views per step", f"{s.total_batch * s.repeats} ({s.repeats} of each video)"),
        ("steps", f"{s.total_steps} = {s.epochs} passes x {s.steps_per_epoch}"),
        ("warm-up steps", str(s.warmup_steps)),
        ("peak lr", f"{s.peak_lr:.3g} = base lr x {s.total_batch} / 256"),
        ("views of each video", f"{s.passes:.4g}"),
    ]


def _checkpoint_to_resume(folder: Path, store: Store) -> Checkpoint:
    """Return the last checkpoint of a run, if it was trained on this very store."""
    try:
        checkpoint = find_checkpoint(folder)
    except CheckpointError:
        raise CheckpointError(
            f"`{folder}` stopped before its first checkpoint: there is nothing to resume",
            hint="start it again with `--overwrite`; `run.save_every` sets how often it saves",
        ) from None
    if checkpoint.meta["store_fingerprint"] != store.fingerprint():
        raise UsageError(
            f"the store `{store.path}` is not the one that `{folder}` was trained on: "
            "videos or settings have changed",
            hint="start anew from these weights with `--init` and another `--out`",
        )
    return checkpoint


def _refuse_other_recipe(folder: Path, loaded: LoadedRecipe) -> None:
    """Resuming continues the same training: only what does not change its numbers may differ."""
    before = load_recipe(folder / "recipe.yaml").recipe.model_dump(mode="json")
    now = loaded.recipe.model_dump(mode="json")
    differing = [
        f"`{key}: {new}` (the run has `{old}`)"
        for key, old, new in _differences(before, now)
        if key == "run.seed" or not key.startswith(FREE_TO_CHANGE)
    ]
    if differing:
        raise UsageError(
            f"the recipe differs from the run in `{folder}`: " + ", ".join(differing),
            hint="`run.*`, `evaluate.*`, `data.workers`, `data.max_bad_share` and the place of "
            "the store may change on `--resume`; "
            "to start anew from these weights, use `--init` and another `--out`",
        )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
    elif before != now:
        yield path, before, now
