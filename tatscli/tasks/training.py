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
from tatscli.engine.run import describe_run, open_run, write_atomically, write_run_json
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError, UsageError
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe, dump_recipe, load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store


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
        try:
            checkpoint = find_checkpoint(folder)
        except CheckpointError:
            here.reporter.warn(f"`{folder}` holds no checkpoint yet, so training starts again")
    if here.world.main:
        write_atomically(folder / "recipe.yaml", dump_recipe(loaded.recipe))
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


def schedule_rows(schedule: Schedule) -> list[tuple[str, str]]:
    """Return the derived numbers and their reasons, for people."""
    s = schedule
    return [
        (
            "total batch",
            f"{s.total_batch} = {s.batch_per_device} videos x {s.world} devices "
            f"x {s.accumulation} accumulated",
        ),
        ("views per step", f"{s.total_batch * s.repeats} ({s.repeats} of each video)"),
        ("steps", f"{s.total_steps} = {s.epochs} passes x {s.steps_per_epoch}"),
        ("warm-up steps", str(s.warmup_steps)),
        ("peak lr", f"{s.peak_lr:.3g} = base lr x {s.total_batch} / 256"),
        ("views of each video", f"{s.passes:.4g}"),
    ]


def _refuse_other_recipe(folder: Path, loaded: LoadedRecipe) -> None:
    """Resuming continues the same training: only `run.*` may differ."""
    before = load_recipe(folder / "recipe.yaml").recipe.model_dump(mode="json", exclude={"run"})
    now = loaded.recipe.model_dump(mode="json", exclude={"run"})
    seeds = (load_recipe(folder / "recipe.yaml").recipe.run.seed, loaded.recipe.run.seed)
    differing = [
        f"`{key}: {new}` (the run has `{old}`)" for key, old, new in _differences(before, now)
    ]
    if seeds[0] != seeds[1]:
        differing.append(f"`run.seed: {seeds[1]}` (the run has `{seeds[0]}`)")
    if differing:
        raise UsageError(
            f"the recipe differs from the run in `{folder}`: " + ", ".join(differing),
            hint="only `run.*` keys may change on `--resume`; "
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
