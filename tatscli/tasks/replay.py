"""`tats replay`: repeating the bad step that stopped a training, to find the module, the video and
the precision at fault.

Shapes: B views of a micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.loader import training_batches
from tatscli.engine.bad_batch import read_bad_step
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.distributed import World
from tatscli.engine.loop import forward
from tatscli.engine.session import Session, session
from tatscli.engine.threads import use_threads
from tatscli.engine.trace import Trace
from tatscli.engine.training import Training
from tatscli.errors import UsageError
from tatscli.masking.schedule import ScheduleMasker
from tatscli.recipe.derive import Schedule, derive_schedule
from tatscli.recipe.load import LoadedRecipe, override_recipe, with_store_found
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_value
from tatscli.store.reader import Store
from tatscli.tasks.rehearsal import stage_of
from tatscli.tasks.replay_findings import Passed, describe
from tatscli.tasks.training import Stage

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Values of `run.precision` by data type."""


def replay(
    run: Path,
    *,
    reporter: Reporter,
    precision: str | None = None,
    device: str | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """Repeat forward and backward pass of the bad step of a training, with the weights it had, one
    rank after the other.

    Args:
        run: The run folder.
        reporter: Speaks to the user.
        precision: As `run.precision`; None takes that of the training.
        device: As `run.device`; None takes that of the recipe.
        store: Where the store is now; None takes that of the recipe.

    Returns:
        `finite`: whether everything is finite now; `loss`, `grad_norm`; `first_output` and
        `first_gradient` that are not finite, by module; `largest_outputs`; `videos`.

    Raises:
        UsageError: If the run has no bad step, or the store is another one.
        TatsError: If recipe, weights or data cannot be used.
    """
    kept = read_bad_step(run)
    own = PRECISIONS[kept.meta["precision"]]
    changes = {"run.precision": precision or own, "run.device": device, "data.store": store}
    words = [f"{key}={dump_value(value)}" for key, value in changes.items() if value is not None]
    words += ["data.workers=0", "data.cache=none", "run.compile=false", "run.track=[]"]
    trained = with_store_found(kept.recipe, kept.meta.get("store"))
    recipe = override_recipe(trained, words, origin=kept.path / "meta.json")
    stage = _stage(kept, recipe, run)
    processes = len(kept.meta["rows"])
    if processes > 1:
        reporter.info(
            f"replaying the batches of {processes} processes one after the other; averages over "
            "processes, such as those of BatchNorm, are taken over one process at a time"
        )
    with session(recipe.run, reporter, joins=False) as here:
        training, schedule = _prepared(stage, kept, here)
        views = schedule.batch_per_device * schedule.repeats
        with use_threads(recipe.run.threads, views * stage.work(), here.device):
            passed = _pass(stage, training, schedule, kept, here)
            norm = _norm(training)
        return describe(run, kept, stage, training, passed, norm)


def _stage(kept: Checkpoint, recipe: Recipe, run: Path) -> Stage:
    """Return the stage that a run was trained by.

    Raises:
        UsageError: If the store is not the one that it was trained on.
    """
    store = Store.open(recipe.data.store)
    if store.fingerprint() != kept.meta["store_fingerprint"]:
        raise UsageError(
            f"the store `{store.path}` is not the one that `{run}` was trained on: videos or "
            "settings have changed, so the batch would differ",
            hint="give the original store as `--store`",
        )
    loaded = LoadedRecipe(recipe, kept.meta["name"], kept.path / "meta.json", recipe.model_dump())
    return stage_of(loaded, "finetune" if kept.kind == "finetuned" else "pretrain", store, run)


def _prepared(stage: Stage, kept: Checkpoint, here: Session) -> tuple[Training, Schedule]:
    """Build everything as the training did, and restore the state before the step."""
    schedule = derive_schedule(
        stage.optim,
        videos=len(stage.rows),
        repeats=stage.repeats,
        world=len(kept.meta["rows"]),
    )
    stage.build(here, resume=True)
    stage.facts(kept)  # frozen networks are compared by digest
    stage.to(here.device)
    stage.network = stage.model
    learners = stage.learners(schedule)
    training = Training(
        model=stage.model,
        step=stage.step,
        learners=learners,
        parts=stage.parts(learners),
        schedule=schedule,
        batches=lambda start: iter(()),
        run=stage.recipe.run,
        folder=kept.path,
        meta={},
        world=here.world,
        device=here.device,
        dtype=here.dtype,
        reporter=here.reporter,
    )
    training.restore(kept)
    for learner in learners.values():
        learner.begin(training.done)
    for module in stage.modules().values():
        if isinstance(module, ScheduleMasker):
            module.done = training.done  # it counts steps, and has counted to the end of training
    stage.model.train()
    scale = training.loss_scale
    if scale is not None and not kept.has("loss_scale"):
        scale.scale = torch.ones_like(scale.scale)  # so that an overflow is not due to the scale
    return training, schedule


def _pass(
    stage: Stage, training: Training, schedule: Schedule, kept: Checkpoint, here: Session
) -> list[Passed]:
    """Run forward and backward pass of every micro-batch of every rank; gradients accumulate to the
    average over the ranks."""
    passed, rows = list[Passed](), kept.meta["rows"]
    count = len(rows) * schedule.accumulation
    bar = here.reporter.progress(total=count, description="replaying", unit="batch")
    with bar:
        for rank, wanted in enumerate(rows):
            batches = training_batches(
                stage.clips,
                schedule,
                seed=kept.meta["seed"],
                start_step=kept.step,
                rank=rank,
                world=len(rows),
                max_bad_share=stage.recipe.data.max_bad_share,
            )
            training.world = World(rank=rank, size=len(rows))
            found = list[int]()
            for part in range(schedule.accumulation):
                batch = next(batches)
                found += batch.row_B.tolist()
                passed.append(_one(stage, training, batch, part, 1 / count))
                bar.update()
            if found != wanted:
                here.reporter.warn(
                    f"rank {rank}: the batch differs from the saved one; perhaps some videos could "
                    "not be read then, or cannot be read now"
                )
    return passed


def _one(stage: Stage, training: Training, batch: Batch, part: int, share: float) -> Passed:
    """Run one micro-batch, whose loss counts as a share of the step's loss."""
    there = batch.to(training.device)
    trace = Trace(len(there.row_B))
    with trace.watching(stage.modules()):
        lesson = forward(training, there, part)
    assert lesson.loss is not None and lesson.by_sample is not None
    loss = lesson.loss * share
    scale = training.loss_scale
    (loss if scale is None else scale.scaled(loss)).backward()
    told = torch.as_tensor(lesson.metrics.get("loss", lesson.loss))
    return Passed(
        training.world.rank,
        part,
        batch,
        float(told.detach()),
        lesson.by_sample.float().tolist(),
        trace,
    )


def _norm(training: Training) -> float:
    """Return the norm of the model's gradient."""
    gradients = [one.grad for one in training.model.parameters() if one.grad is not None]
    if training.loss_scale is not None:
        training.loss_scale.unscale_(gradients)
    return float(nn.utils.get_total_norm(gradients))
