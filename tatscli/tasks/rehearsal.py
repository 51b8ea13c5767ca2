"""A training that is built as usual and writes nothing, to measure its steps.

Without a store the clips are random pixels, and a stand-in that has rows but no files says how many
classes there are.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tatscli.data.batch import Batch
from tatscli.engine.ceiling import settle
from tatscli.engine.feed import Feed
from tatscli.engine.loop import optimise
from tatscli.engine.metrics import Averages
from tatscli.engine.parallel import parallelize
from tatscli.engine.session import Session
from tatscli.engine.training import Training
from tatscli.errors import DataError
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.store.schema import ClassGroup, Dataset, Row
from tatscli.tasks.finetune import Finetuning
from tatscli.tasks.flops import stage_batch
from tatscli.tasks.pretrain import Pretraining
from tatscli.tasks.tokenizer import TokenizerTraining
from tatscli.tasks.training import Stage

StageName = Literal["pretrain", "finetune"]

_VIDEOS = 64  # of the stand-in
_STEPS, _FIRST = 10_000, 5_000  # of the schedule, and where it stands: every warm-up is over


def quiet_recipe(loaded: LoadedRecipe) -> LoadedRecipe:
    """Turn off what is not part of a step: trackers, pictures, `run.watch`."""
    recipe = loaded.recipe
    run = recipe.run.model_copy(update={"watch": None, "track": [], "out": None, "max_steps": None})
    return replace(loaded, recipe=recipe.model_copy(update={"run": run}))


def open_store(loaded: LoadedRecipe) -> tuple[Store, str | None]:
    """Open the recipe's store, or make a placeholder; also return the reason for it."""
    try:
        return Store.open(loaded.recipe.data.store), None
    except DataError as error:
        return stand_in(loaded), error.message


def stand_in(loaded: LoadedRecipe) -> Store:
    """Make a store with rows, labels and motion in the manifest only, and no files."""
    data, settings = loaded.recipe.data, loaded.recipe.finetune
    splits = [one for one in (data.split, settings.split, settings.val_split) if one is not None]
    names = list(settings.class_weights) if isinstance(settings.class_weights, dict) else []
    names += [f"class {number}" for number in range(len(names), 2)]
    videos = max(_VIDEOS, (data.shots or 1) * len(names))
    rows = [
        Row(
            id=f"{number:06}",
            status="ok",
            label=number % len(names),
            split=splits[0] if splits else None,
            also_in=tuple(splits[1:]),
            fps=30.0,
            frames=300,
            width=340,
            height=256,
            duration=10.0,
            motion="native",
            moving=299,
        )
        for number in range(videos)
    ]
    members = tuple(number % 2 for number in range(len(names)))
    groups = {one: ClassGroup(names=("0", "1"), of=members) for one in settings.heads or []}
    dataset = Dataset(complete=True, class_names=tuple(names), class_groups=groups)
    return Store(Path(data.store), dataset, rows)


def stage_of(loaded: LoadedRecipe, name: StageName, store: Store, run: Path = Path()) -> Stage:
    """Return the stage that a recipe describes; a recipe with a `tokenizer` trains that."""
    if name == "finetune":
        return Finetuning(loaded, store, None)
    if loaded.recipe.tokenizer is not None:
        return TokenizerTraining(loaded, store, None, run)
    return Pretraining(loaded, store, None, run)


def rehearsed(loaded: LoadedRecipe, name: StageName, here: Session, store: Store) -> Stage:
    """Build the stage that a recipe describes.

    Raises:
        TatsError: If it cannot be trained.
    """
    stage = stage_of(loaded, name, store)
    # No messages about where a run starts.
    stage.build(replace(here, reporter=here.reporter.silenced()), resume=False)
    return stage


@dataclass(frozen=True, slots=True)
class Timing:
    """What some steps took.

    Attributes:
        clips_per_second: By the clock; each view of a video is a clip.
        steps: How many were measured.
        seconds: That they took together.
        host_share: Of the time, how much the host was busy giving out work: near 1 where a GPU
            waits for it.
    """

    clips_per_second: float
    steps: int
    seconds: float
    host_share: float


class Rehearsal:
    """Steps of a stage on random clips, each as the loop takes it.

    Args:
        stage: Built; it goes to the device and learns.
        here: The device and precision.
    """

    def __init__(self, stage: Stage, here: Session) -> None:
        self.stage = stage
        self.here = here
        stage.to(here.device)
        synced = parallelize(stage.model, stage.recipe, here, stage.copies())
        stage.network = synced or stage.model
        self._learners = stage.learners(self._schedule(1))
        self._parts = stage.parts(self._learners)
        stage.model.train()

    def run(self, videos: int, *, steps: int = 1, seconds: float = 0.0) -> Timing:
        """Take steps with so many videos, at least `steps` and for `seconds`."""
        stage, here = self.stage, self.here
        given = stage_batch(stage, videos * stage.repeats)
        # The rows stay on the host, where the loop looks at them.
        batch = replace(given.to(here.device), row_B=given.row_B)

        def batches() -> Iterator[Batch]:
            while True:
                yield batch

        training = Training(
            model=stage.model,
            step=stage.step,
            learners=self._learners,
            parts=self._parts,
            schedule=self._schedule(videos),
            batches=lambda _: batches(),
            run=stage.recipe.run,
            folder=Path(),
            meta={},
            world=here.world,
            device=here.device,
            dtype=here.dtype,
            reporter=here.reporter.silenced(),
            done=_FIRST,
        )
        feed, averages = Feed(training.batches(_FIRST), here.device), Averages()
        settle(here.device)
        started, host, done = time.perf_counter(), 0.0, 0
        while done < steps or time.perf_counter() - started < seconds:
            began = time.perf_counter()
            optimise(training, feed, averages)
            host += time.perf_counter() - began
            training.done += 1
            done += 1
            if done % stage.recipe.run.log_every == 0:
                averages.read()
        settle(here.device)
        taken = time.perf_counter() - started
        return Timing(done * videos * stage.repeats / taken, done, taken, host / taken)

    def free(self) -> None:
        """Give back what a step holds that was not finished; the optimiser begins anew."""
        for learner in self._learners.values():
            learner.optimizer.zero_grad(set_to_none=True)
            learner.forget()
        gc.collect()
        if self.here.device.type == "cuda":
            torch.cuda.empty_cache()

    def _schedule(self, videos: int) -> Schedule:
        optim = self.stage.optim.model_copy(
            update={"total_batch": videos, "batch_per_device": videos, "epochs": _STEPS}
        )
        return derive_schedule(optim, videos=videos, repeats=self.stage.repeats, world=1)
