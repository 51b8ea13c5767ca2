"""What all trainings share: run folder, resuming, data and the training loop.

A `Stage` defines what is trained; `run_training` does the rest.
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
from tatscli.engine.replaced import put_back_on_failure
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
from tatscli.tasks.failed_rows import tell_failed
from tatscli.tasks.flops import flops_for_mfu
from tatscli.tasks.resuming import (
    checkpoint_to_resume,
    is_over,
    refuse_other_recipe,
    warn_of_other_draws,
    warn_of_other_processes,
)
from tatscli.tasks.schedule import check_schedule, schedule_line
from tatscli.visualize.text import Picture


class Stage:
    """One kind of training: its model, its step, and what it saves.

    Args:
        loaded: The merged recipe.
        store: The data.
        rows: Rows of the store to train on.
        optim: Its optimiser settings.
        repeats: Views of each video in a batch.

    Attributes:
        kind: The kind of its checkpoints.
        model: The trained model; set by `build`.
        clips: The training data; set by `build`.
        network: What `step` calls: the model, or its data-parallel wrapper.
        networks: Names of the attributes whose tensors `step` reads.
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
        """Build model and data; raise if they cannot be trained, before anything is written."""
        raise NotImplementedError

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return the learners by name, the model's first; everything is on its device by now."""
        raise NotImplementedError

    def step(self, batch: Batch, draws: Draws) -> Lesson:
        """Return the loss of a micro-batch and its metrics."""
        raise NotImplementedError

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return the parts of a checkpoint, by file name."""
        main = next(iter(learners.values()))
        return {"model": Weights(self.model), "optimizer": main}

    def copies(self) -> Copies:
        """Return the EMA copies, each with the module that it follows."""
        return []

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Return additional entries for checkpoints' `meta.json`."""
        return {}

    def about(self) -> dict[str, Any]:
        """Return additional entries about the data for `run.json` and checkpoints."""
        return {}

    def splits(self) -> list[str | None]:
        """Return the splits of the store that are trained and scored on; None is all of it."""
        return [self.recipe.data.split]

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a step runs, by name; the model's is empty."""
        return {"": self.model}

    def work(self) -> float:
        """Estimate the floating-point operations of a step on one video."""
        raise NotImplementedError

    def score(self, epoch: int, here: Session) -> tuple[float | None, dict[str, float]] | None:
        """Return a score, where higher is better, and metrics after an epoch; None if not due.

        A score of None selects no `best` checkpoint.
        """
        return None

    def pictures(self, epoch: int, here: Session) -> dict[str, Picture]:
        """Return images for trackers after an epoch, by name; called on the main process only."""
        return {}

    def check(self, means: dict[str, float]) -> None:
        """Check the averages of a log line, and raise if they reveal a bug."""

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        self.model.to(device)


def run_training(
    stage: Stage, folder: Path, *, reporter: Reporter, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Run a training in a run folder, from the start or from its last checkpoint.

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
        check_schedule(recipe, stage.optim, schedule, here, resume=resume)
        stage.build(here, resume=resume)
        # Only now, so that a run is not replaced by one that cannot be trained.
        about = stage.about()
        main = here.world.main
        stack.enter_context(held_run(folder, reporter, main=main))
        stack.enter_context(put_back_on_failure(folder, here.reporter, main=main))
        checkpoint = begin_run(
            here, folder, loaded, schedule, store, about=about, resume=resume, overwrite=overwrite
        )
        over = is_over(checkpoint, schedule, recipe.run)
        if not over:
            here.reporter.info(schedule_line(schedule, stage.optim, recipe.run))
        if here.world.main:
            tell_failed(store, stage.splits(), here.reporter)
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
                name=recipe_name(loaded, checkpoint),
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
            if not over:
                done, total = training.done, schedule.total_steps
                here.reporter.info(f"resuming after step {done} of {total}")
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
    """Open the run folder and write `run.json`; return the checkpoint to resume from, if any.

    Raises:
        UsageError: If the folder is in use, or the recipe to resume differs from the run's.
        CheckpointError: If there is nothing to resume.
    """
    checkpoint = None
    if here.world.main:
        open_run(folder, resume=resume, overwrite=overwrite, warn=here.reporter.warn)
    distributed.wait()
    if resume:
        refuse_other_recipe(folder, loaded)
        checkpoint = checkpoint_to_resume(folder, store, here)
    if here.world.main and not is_over(checkpoint, schedule, loaded.recipe.run):
        write_safely(folder / "recipe.yaml", dump_recipe(loaded.recipe))
        facts = describe_run(
            recipe=recipe_name(loaded, checkpoint),
            device=here.reasons["device"],
            precision=here.reasons["precision"],
            processes=here.world.size,
            parallel=choose_parallel(loaded.recipe.run, here.world),
            derived=asdict(schedule),
            store=str(store.path.resolve()),
            store_fingerprint=store.fingerprint(),
            resumed_at=checkpoint.step if checkpoint else None,
            **about,
        )
        write_run_json(folder, facts, here.reporter.warn)
    distributed.wait()
    return checkpoint


def recipe_name(loaded: LoadedRecipe, resumed: Checkpoint | None) -> str:
    """Return the name of a run's recipe, which resuming does not change."""
    return str(loaded.name if resumed is None else resumed.meta.get("name", loaded.name))


def checkpoint_meta(
    kind: str, loaded: LoadedRecipe, store: Store, *, name: str, **facts: Any
) -> dict[str, Any]:
    """Return the contents of every checkpoint's `meta.json`."""
    return {
        "kind": kind,
        "name": name,
        "recipe": loaded.recipe.model_dump(mode="json"),
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint(),
        "tats": __version__,
        "torch": torch.__version__,
        "draws": Draws.version,
        **facts,
    }


def data_stream(
    clips: Clips, schedule: Schedule, recipe: Recipe, store: Store, here: Session
) -> Callable[[int], Iterator[Batch]]:
    """Return a function from the first optimiser step to an endless iterator of micro-batches."""

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
