"""What every training shares: its run folder, resuming, its data, and the way through the loop.

A stage says what it trains; `run_training` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from tatscli import __version__
from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import Clips
from tatscli.data.loader import training_batches, worker_count
from tatscli.data.step_clips import clips_of_step
from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.loop import train
from tatscli.engine.parallel import Copies, choose_parallel, parallelize
from tatscli.engine.part import Lesson, Part, Weights
from tatscli.engine.run import describe_run, held_run, open_run, write_run_json
from tatscli.engine.session import Session, session
from tatscli.engine.threads import use_threads
from tatscli.engine.track import need_trackers
from tatscli.engine.training import Training
from tatscli.files import write_safely
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Optim, Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.reader import Store
from tatscli.tasks.flops import flops_for_mfu
from tatscli.tasks.resuming import (
    checkpoint_to_resume,
    refuse_other_recipe,
    warn_of_other_draws,
    warn_of_other_processes,
)
from tatscli.visualize.text import Picture


class Stage:
    """One kind of training: what is built, what a step is, what is kept.

    Args:
        loaded: The merged recipe.
        store: The data.
        rows: Rows of the store to train on.
        optim: The section that says how.
        repeats: Views drawn from each video of a batch.

    Attributes:
        kind: What its checkpoints are called.
        model: What is trained; `build` sets it.
        clips: What it is trained on; `build` sets it.
        network: What `step` calls: the model, or what averages it over processes.
        networks: Names of the attributes with tensors that `step` reads.
    """

    kind: ClassVar[str]
    networks: ClassVar[tuple[str, ...]] = ("model",)
    model: nn.Module
    clips: Clips
    network: nn.Module

    def __init__(
        self, loaded: LoadedRecipe, store: Store, rows: list[int], optim: Optim, *, repeats: int
    ) -> None:
        self.loaded = loaded
        self.recipe: Recipe = loaded.recipe
        self.store = store
        self.rows = rows
        self.optim = optim
        self.repeats = repeats

    def build(self, here: Session, *, resume: bool) -> None:
        """Build model and clips, and refuse what cannot be trained, before anything is written."""
        raise NotImplementedError

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return what learns, by name, the model's own first; everything is on its device now."""
        raise NotImplementedError

    def step(self, batch: Batch, draws: Draws) -> Lesson:
        """Return the loss of a micro-batch and its metrics."""
        raise NotImplementedError

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return what a checkpoint keeps, by file."""
        main = next(iter(learners.values()))
        return {"model": Weights(self.model), "optimizer": main}

    def copies(self) -> Copies:
        """Return the moving averages, each with what it follows."""
        return []

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Return what checkpoints say beside the usual."""
        return {}

    def about(self) -> dict[str, Any]:
        """Return what `run.json` and checkpoints say of the data beside the usual."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Return what a step runs through, by name: the model as ``, what is beside it."""
        return {"": self.model}

    def work(self) -> float:
        """Estimate the floating-point operations of a step on one video."""
        raise NotImplementedError

    def score(self, epoch: int, here: Session) -> tuple[float | None, dict[str, float]] | None:
        """Score the model after a pass, higher is better, with metrics; None if there is none.

        A score of None with metrics picks no `best`.
        """
        return None

    def pictures(self, epoch: int, here: Session) -> dict[str, Picture]:
        """Draw what trackers are shown after a pass, by name; called on the main process alone."""
        return {}

    def check(self, means: dict[str, float]) -> None:
        """Look at the averages of a log line, and raise if they show a fault."""

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        self.model.to(device)


def run_training(
    stage: Stage, folder: Path, *, reporter: Reporter, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Train a stage into a run folder, from the start or on from its last checkpoint.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, and the last averages.

    Raises:
        UsageError: If the folder is in use, the recipe to resume differs from the run's, or a
            tracker's package is missing.
        CheckpointError: If there is nothing to resume.
    """
    loaded, recipe, store = stage.loaded, stage.recipe, stage.store
    need_trackers(recipe.run.track)
    with session(recipe.run, reporter) as here, ExitStack() as stack:
        choose_parallel(recipe.run, here.world)
        schedule = derive_schedule(
            stage.optim, videos=len(stage.rows), repeats=stage.repeats, world=here.world.size
        )
        stage.build(here, resume=resume)
        # Only now: what cannot be trained must not cost a run that `overwrite` replaces.
        about = stage.about()
        stack.enter_context(held_run(folder, reporter, main=here.world.main))
        checkpoint = begin_run(
            here, folder, loaded, schedule, store, about=about, resume=resume, overwrite=overwrite
        )
        for name, value in schedule_rows(schedule):
            here.reporter.detail(f"{name}: {value}")
        here.reporter.detail(f"frames in memory: {stage.clips.cache_plan}")
        flops = flops_for_mfu(stage, here)
        stage.to(here.device)
        copies = stage.copies()
        synced = parallelize(stage.model, recipe, here, copies)
        stage.network = synced or stage.model
        learners = stage.learners(schedule)
        views = schedule.batch_per_device * schedule.repeats
        training = Training(
            model=stage.model,
            step=stage.step,
            learners=learners,
            parts=stage.parts(learners),
            schedule=schedule,
            batches=data_stream(stage.clips, schedule, recipe, store, here),
            run=recipe.run,
            folder=folder,
            meta=checkpoint_meta(
                stage.kind,
                loaded,
                store,
                processes=here.world.size,
                **about,
                **stage.facts(checkpoint),
            ),
            world=here.world,
            device=here.device,
            dtype=here.dtype,
            reporter=here.reporter,
            synced=synced,
            copies=copies,
            score=lambda epoch: stage.score(epoch, here),
            check=stage.check,
            pictures=lambda epoch: stage.pictures(epoch, here),
            describe=lambda done, rows: clips_of_step(
                stage.clips, schedule, rows, seed=recipe.run.seed, step=done, rank=here.world.rank
            ),
            flops=flops,
        )
        if checkpoint is not None:
            training.restore(checkpoint)
            here.reporter.info(f"resuming after step {training.done} of {schedule.total_steps}")
            warn_of_other_draws(checkpoint, here)
            warn_of_other_processes(checkpoint, here)
        with use_threads(recipe.run.threads, views * stage.work(), here.device) as reason:
            here.reporter.detail(f"threads: {reason}")
            result = train(training)
    last = find_checkpoint(folder).path if here.world.main else folder
    return {"run": str(folder), "checkpoint": str(last), **result}


def begin_run(
    here: Session,
    folder: Path,
    loaded: LoadedRecipe,
    schedule: Schedule,
    store: Store,
    *,
    about: dict[str, Any],
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
        refuse_other_recipe(folder, loaded)
        checkpoint = checkpoint_to_resume(folder, store, here)
    if here.world.main:
        write_safely(folder / "recipe.yaml", dump_recipe(loaded.recipe))
        facts = describe_run(
            recipe=loaded.name,
            device=here.reasons["device"],
            precision=here.reasons["precision"],
            processes=here.world.size,
            parallel=choose_parallel(loaded.recipe.run, here.world),
            derived=asdict(schedule),
            store=str(store.path),
            store_fingerprint=store.fingerprint(),
            resumed_at=checkpoint.step if checkpoint else None,
            **about,
        )
        write_run_json(folder, facts, here.reporter.warn)
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
        "draws": Draws.version,
        **facts,
    }


def data_stream(
    clips: Clips, schedule: Schedule, recipe: Recipe, store: Store, here: Session
) -> Callable[[int], Iterator[Batch]]:
    """Return the function from an optimiser step to the endless micro-batches that follow it."""

    def warn(row: int, reason: str) -> None:
        here.own.warn(f"`{store.rows[row].id}` cannot be read and is replaced: {reason}")

    finishing = clips.finish_on(here.device)
    tell = here.reporter.warn if finishing.refused else here.reporter.detail
    tell(f"clips: {finishing.reason}")

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
            timeout=recipe.data.timeout,
            warn=here.own.warn,
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
