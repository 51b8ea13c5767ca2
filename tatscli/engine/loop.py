"""The one training loop: accumulation, precision, schedule, logging, checkpoints, signals.

It knows nothing of video: a task hands it learners, a function from a batch to a loss, and an
endless iterator of micro-batches that starts at the step where training starts. Between two log
lines it waits for nothing on the device.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tatscli.console import Reporter
from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.bad_steps import BadSteps
from tatscli.engine.checkpoint import Checkpoint, restore_part, save_checkpoint
from tatscli.engine.device import autocast
from tatscli.engine.learner import Learner
from tatscli.engine.metrics import Averages, MetricsLog, metrics_log
from tatscli.engine.part import Lesson, Part
from tatscli.engine.rng import draws_at, seed_torch
from tatscli.engine.signals import StopRequest, stop_requests
from tatscli.errors import DataError, Exit, Stopped
from tatscli.recipe.derive import Schedule
from tatscli.recipe.schema import Run


class MicroBatch(Protocol):
    """What the loop asks of a batch."""

    @property
    def replaced(self) -> int:
        """Unreadable samples that were replaced."""

    @property
    def row_B(self) -> Tensor:
        """Where the samples came from; kept when a batch goes wrong."""

    def to(self, device: torch.device, /) -> Self:
        """Return the batch on a device."""


StepFunction = Callable[[Any, Draws], Lesson]


@dataclass(slots=True)
class Training:
    """Everything the loop needs, and where it stands.

    Attributes:
        model: What is trained; put in training mode, scored and saved.
        step: Maps a batch and its draws to loss and metrics of a micro-batch; a metric `loss`
            is logged in place of the loss.
        learners: What is updated, by name; the first is the model's own, whose gradient must stay
            finite.
        parts: What a checkpoint keeps, by the stem of its file, and what is told of every step.
        schedule: Steps and accumulation.
        batches: Maps the first optimiser step to an endless iterator of micro-batches.
        run: The recipe's `run` section.
        folder: The run folder.
        meta: What every checkpoint's `meta.json` says.
        world: This process among its peers.
        device: Where the model is.
        dtype: Autocast precision.
        reporter: Speaks to the user.
        synced: The DistributedDataParallel wrapper that `step` calls, if any.
        score: Scores the model after a pass, higher is better, with metrics; None when it is not
            yet time. A score of None is no score: there are metrics, and nothing to choose by.
        check: Looks at the averages of every log line, and raises if they show a fault.
        pictures: Draws what trackers are shown after a pass, by name, uint8 (H, W, 3); asked of the
            main process alone.
        done: Optimiser steps done.
        best: Best score so far.
    """

    model: nn.Module
    step: StepFunction
    learners: Mapping[str, Learner]
    parts: Mapping[str, Part]
    schedule: Schedule
    batches: Callable[[int], Iterator[MicroBatch]]
    run: Run
    folder: Path
    meta: dict[str, Any]
    world: distributed.World
    device: torch.device
    dtype: torch.dtype
    reporter: Reporter
    synced: DistributedDataParallel | None = None
    score: Callable[[int], tuple[float | None, dict[str, float]] | None] | None = None
    check: Callable[[dict[str, float]], None] | None = None
    pictures: Callable[[int], Mapping[str, np.ndarray]] | None = None
    done: int = 0
    best: float | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this very training."""
        for name, part in self.parts.items():
            restore_part(name, part, checkpoint)
        self.done = checkpoint.step
        self.best = checkpoint.meta.get("best_score")

    @property
    def last(self) -> int:
        """The optimiser step to stop after."""
        return min(self.schedule.total_steps, self.run.max_steps or self.schedule.total_steps)


def train(training: Training) -> dict[str, Any]:
    """Run the remaining steps.

    Returns:
        `steps`, `seconds`, the last averages (`loss`, ...) and `best_score` where scores exist.

    Raises:
        Stopped: After SIGINT or SIGTERM, with a checkpoint saved.
        TatsError: If loss or gradients are not finite for `run.max_bad_steps` steps in a row.
    """
    schedule, run, last = training.schedule, training.run, training.last
    if training.done >= last:
        training.reporter.warn(_nothing_left(training))
    save_steps = max(1, round(run.save_every * schedule.steps_per_epoch))
    folder = training.folder if training.world.main else None
    opened_log = metrics_log(folder, run, training.done, training.meta, training.reporter)
    averages, means = Averages(), dict[str, float]()
    main = next(iter(training.learners.values()))
    bad_steps = BadSteps(main, run, training.folder, training.world.rank)
    started, first = time.perf_counter(), training.done
    batches = training.batches(training.done)
    bar = training.reporter.progress(
        total=last, initial=training.done, description="steps", unit="step"
    )
    training.model.train()
    # Trackers may wait for a server: until they are open, and as they close, Ctrl-C is Ctrl-C.
    with opened_log as log, stop_requests() as request, bar, _settled_garbage() as settle:
        while training.done < last:
            try:
                bad_steps.remember(optimise(training, batches, averages))
            except DataError:
                # A signal to the whole job ends the loader's workers too: save what is done.
                if not request.exit_code:
                    raise
                # Alone and at the start of a step everything belongs to the same step.
                if training.world.size == training.schedule.accumulation == 1:
                    _save(training, best=False)
                raise _stopped(training, last, request.exit_code) from None
            training.done += 1
            bar.update()
            done = training.done
            stop = _agreed_stop(training, request)
            if done % run.log_every == 0 or done == last or stop:
                means = averages.read()
                bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}", refresh=False)
                if training.check is not None:
                    training.check(means)
                _log(training, log, means, started)
                bad_steps.check(done, training.reporter)
            better = False
            if done % schedule.steps_per_epoch == 0:
                better = _score(training, log, means)
                _draw(training, log)
            if better or done % save_steps == 0 or done == last or stop:
                _save(training, best=better)
            if done - first == 1:
                settle()
            if done - first == 50:
                _estimate(training, last, (time.perf_counter() - started) / 50)
            if stop:
                raise _stopped(training, last, stop)
    result: dict[str, Any] = {
        "steps": training.done,
        "seconds": time.perf_counter() - started,
        **means,
    }
    if training.best is not None:
        result["best_score"] = training.best
    return result


def optimise(training: Training, batches: Iterator[MicroBatch], averages: Averages) -> list[int]:
    """Take one optimiser step, add up its metrics, and return where its samples came from."""
    parts, world = training.schedule.accumulation, training.world
    rates = {name: learner.begin(training.done) for name, learner in training.learners.items()}
    began, waited, rows = time.perf_counter(), 0.0, list[int]()
    for part in range(parts):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        rows += batch.row_B.tolist()
        averages.add({"replaced": float(batch.replaced)})
        there = batch.to(training.device)
        seed_torch(training.run.seed, training.done, part, world.rank)
        first = (part * world.size + world.rank) * len(there.row_B)
        draws = draws_at(training.run.seed, training.done, first=first)
        # Gradients cross the network once a step, with the last micro-batch.
        hold = training.synced.no_sync() if training.synced and part < parts - 1 else nullcontext()
        with hold:
            with autocast(training.device, training.dtype):
                lesson = training.step(there, draws)
            assert lesson.loss is not None
            (lesson.loss / parts).backward()
        averages.add({"loss": lesson.loss, **lesson.metrics})
        _tell(training, lesson)
    for name, learner in training.learners.items():
        norm = learner.update()
        if norm is not None:
            prefix = _prefix(training, name)
            averages.add({f"{prefix}grad_norm": norm})
            if prefix:  # the model's own are told, and end the run where there are too many
                averages.add({f"{prefix}skipped": (~norm.isfinite()).float()})
    for one in training.parts.values():
        lesson = one.after_step(training.done + 1, training.schedule.total_steps)
        averages.add(lesson.metrics)
        _tell(training, lesson)
    averages.add({f"{_prefix(training, name)}lr": rate for name, rate in rates.items()})
    worked = time.perf_counter() - began - waited
    averages.add({"data_seconds": waited, "step_seconds": worked})
    return rows


def _tell(training: Training, lesson: Lesson) -> None:
    for notice in lesson.notices:
        training.reporter.warn(notice, once=True)


def _prefix(training: Training, name: str) -> str:
    """Return what the metrics of a learner begin with: nothing for the model's own."""
    return "" if name == next(iter(training.learners)) else f"{name}_"


@contextmanager
def _settled_garbage() -> Iterator[Callable[[], None]]:
    """Spare the collector what lives as long as the training: models, data sets, torch itself.

    Yields:
        What to call once all of that is there.
    """

    def settle() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield settle
    finally:
        gc.unfreeze()


def _nothing_left(training: Training) -> str:
    """Say that there is no step to take, and how the run goes on if it can."""
    done, total = training.done, training.schedule.total_steps
    if done >= total:
        return f"the run is complete: all {total} steps are done"
    return (
        f"nothing to do: the run has reached `run.max_steps: {training.run.max_steps}`, and "
        f"{total - done} of {total} steps are left; `run.max_steps=null` goes on"
    )


def _stopped(training: Training, last: int, code: int) -> Stopped:
    return Stopped(
        f"stopped after step {training.done} of {last}, checkpoints are in `{training.folder}`",
        hint="continue with `--resume`",
        exit_code=Exit(code),
    )


def _agreed_stop(training: Training, request: StopRequest) -> int:
    """Return the exit code if any rank was told to stop, so that all leave after the same step."""
    return int(distributed.largest(request.exit_code, training.device))


def _log(
    training: Training, log: MetricsLog | None, means: dict[str, float], started: float
) -> None:
    if log is None:
        return
    epoch = training.done / training.schedule.steps_per_epoch
    wall = time.perf_counter() - started
    line = {"step": training.done, "epoch": round(epoch, 4), "wall": round(wall, 3), **means}
    log.write(line)
    numbers = "  ".join(f"{key} {value:.4g}" for key, value in means.items())
    training.reporter.detail(f"step {training.done}  {numbers}")
    waited, worked = means["data_seconds"], means["step_seconds"]
    if training.done > 20 and waited > 0.3 * (waited + worked):
        training.reporter.warn(
            "more than 30 % of the time is spent waiting for data; raise `data.workers`, "
            "or prepare the store with a smaller `--short-side`",
            once=True,
        )


def _score(training: Training, log: MetricsLog | None, means: dict[str, float]) -> bool:
    """Score the model at the end of a pass; return whether it is the best so far."""
    epoch = training.done // training.schedule.steps_per_epoch
    scored = training.score(epoch) if training.score else None
    training.model.train()
    if scored is None:
        return False
    value, metrics = scored
    if log is not None:
        log.write({"step": training.done, "epoch": epoch, **metrics})
    means.update(metrics)
    training.reporter.detail(
        f"pass {epoch}: " + "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    )
    better = value is not None and (training.best is None or value > training.best)
    if better:
        training.best = value
    return better


def _draw(training: Training, log: MetricsLog | None) -> None:
    """Show the pictures of a pass to the trackers."""
    if log is None or training.pictures is None:
        return
    epoch = training.done // training.schedule.steps_per_epoch
    for name, image_HWC in training.pictures(epoch).items():
        log.picture(training.done, name, image_HWC)


def _save(training: Training, *, best: bool) -> None:
    if training.world.main:
        tensors = {name: part.tensors() for name, part in training.parts.items()}
        save_checkpoint(
            training.folder,
            step=training.done,
            tensors={name: named for name, named in tensors.items() if named},
            meta={**training.meta, "best_score": training.best},
            keep=training.run.keep,
            best=best,
        )
    distributed.wait()


def _estimate(training: Training, last: int, seconds: float) -> None:
    left = (last - training.done) * seconds
    hours, minutes = divmod(math.ceil(left / 60), 60)
    training.reporter.info(
        f"{seconds:.2f} s a step; about {hours} h {minutes:02d} min left "
        f"for {last - training.done} steps"
    )
