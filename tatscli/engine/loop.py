"""The one training loop: accumulation, precision, schedule, logging, checkpoints, signals.

It knows nothing of video: a task hands it a model, a function from a batch to a loss, and an
endless iterator of micro-batches that starts at the step where training starts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tatscli.console import Reporter
from tatscli.engine import distributed
from tatscli.engine.checkpoint import Checkpoint, save_checkpoint
from tatscli.engine.device import autocast
from tatscli.engine.metrics import Averages, MetricsLog
from tatscli.engine.optim import load_optimizer_tensors, optimizer_tensors, set_lr
from tatscli.engine.rng import random_at
from tatscli.engine.schedule import lr_at
from tatscli.engine.signals import StopRequest, stop_requests
from tatscli.errors import DataError, Exit, Stopped, TatsError
from tatscli.files import write_safely
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


StepFunction = Callable[[Any, torch.Generator, int], tuple[Tensor, dict[str, float]]]


@dataclass(slots=True)
class Training:
    """Everything the loop needs, and where it stands.

    Attributes:
        model: What is optimised; saved as `model.safetensors`.
        step: Maps (batch, generator, optimiser step) to the loss and metrics of a micro-batch.
        optimizer: Over the parameters of `model`.
        schedule: Steps, accumulation and learning rates.
        batches: Maps the first optimiser step to an endless iterator of micro-batches.
        run: The recipe's `run` section.
        clip_grad: Largest gradient norm, if any.
        folder: The run folder.
        meta: What every checkpoint's `meta.json` says.
        world: This process among its peers.
        device: Where the model is.
        dtype: Autocast precision.
        reporter: Speaks to the user.
        synced: The DistributedDataParallel wrapper that `step` calls, if any.
        score: Scores the model after a pass, higher is better, with metrics; None when it is not
            yet time.
        extra_tensors: Further files of a checkpoint, by stem.
        done: Optimiser steps done.
        best: Best score so far.
    """

    model: nn.Module
    step: StepFunction
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    batches: Callable[[int], Iterator[MicroBatch]]
    run: Run
    clip_grad: float | None
    folder: Path
    meta: dict[str, Any]
    world: distributed.World
    device: torch.device
    dtype: torch.dtype
    reporter: Reporter
    synced: DistributedDataParallel | None = None
    score: Callable[[int], tuple[float, dict[str, float]] | None] | None = None
    extra_tensors: Callable[[], dict[str, dict[str, Tensor]]] = dict
    done: int = 0
    best: float | None = None
    bad_in_a_row: int = field(default=0, init=False)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this very training."""
        self.model.load_state_dict(checkpoint.tensors("model"))
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.tensors("optimizer"))
        self.done = checkpoint.step
        self.best = checkpoint.meta.get("best_score")


def train(training: Training) -> dict[str, Any]:
    """Run the remaining steps.

    Returns:
        `steps`, `seconds`, the last averages (`loss`, ...) and `best_score` where scores exist.

    Raises:
        Stopped: After SIGINT or SIGTERM, with a checkpoint saved.
        TatsError: If loss or gradients are not finite for `run.max_bad_steps` steps in a row.
    """
    schedule, run = training.schedule, training.run
    last = min(schedule.total_steps, run.max_steps or schedule.total_steps)
    save_steps = max(1, round(run.save_every * schedule.steps_per_epoch))
    log = (
        MetricsLog(training.folder / "metrics.jsonl", step=training.done)
        if training.world.main
        else None
    )
    averages, means = Averages(), dict[str, float]()
    started, first = time.perf_counter(), training.done
    batches = training.batches(training.done)
    bar = training.reporter.progress(
        total=last, initial=training.done, description="steps", unit="step"
    )
    training.model.train()
    with stop_requests() as request, bar:
        while training.done < last:
            try:
                averages.add(_optimise(training, batches))
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
                _log(training, log, means, started)
            better = done % schedule.steps_per_epoch == 0 and _score(training, log, means)
            if better or done % save_steps == 0 or done == last or stop:
                _save(training, best=better)
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


def _optimise(training: Training, batches: Iterator[MicroBatch]) -> dict[str, float]:
    """Take one optimiser step and return its metrics."""
    schedule, parts = training.schedule, training.schedule.accumulation
    lr = lr_at(training.done, schedule)
    set_lr(training.optimizer, lr)
    began, waited, totals, rows = time.perf_counter(), 0.0, Averages(), list[int]()
    for part in range(parts):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        rows += batch.row_B.tolist()
        batch = batch.to(training.device)
        generator = random_at(training.run.seed, training.done, part, training.world.rank)
        # Gradients cross the network once a step, with the last micro-batch.
        hold = training.synced.no_sync() if training.synced and part < parts - 1 else nullcontext()
        with hold:
            with autocast(training.device, training.dtype):
                loss, metrics = training.step(batch, generator, training.done)
            (loss / parts).backward()
        totals.add({"loss": float(loss.detach()), "replaced": float(batch.replaced), **metrics})
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), training.clip_grad or math.inf)
    # DDP has averaged the gradients, so every rank sees the same norm and decides alike.
    if math.isfinite(float(norm)):
        training.optimizer.step()
        training.bad_in_a_row = 0
    else:
        _refuse_step(training, rows)
    training.optimizer.zero_grad(set_to_none=True)
    return {
        **totals.read(),
        "lr": lr,
        "grad_norm": float(norm),
        "data_seconds": waited,
        "step_seconds": time.perf_counter() - began - waited,
    }


def _refuse_step(training: Training, rows: list[int]) -> None:
    """Skip an update that is not finite; stop when that happens too often in a row."""
    training.bad_in_a_row += 1
    training.reporter.warn(
        f"step {training.done}: the gradient is not finite, so the weights stay as they are"
    )
    if training.bad_in_a_row < training.run.max_bad_steps:
        return
    facts = {"step": training.done, "seed": training.run.seed, "rows": rows}
    path = training.folder / f"bad-batch-rank{training.world.rank}.json"
    write_safely(path, json.dumps(facts) + "\n")
    raise TatsError(
        f"loss or gradient not finite for {training.bad_in_a_row} steps in a row, "
        f"at step {training.done}; the manifest rows of the batch are in `{path}`",
        hint="lower `optim.base_lr`, set `optim.clip_grad=1`, or try `run.precision=fp32`",
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
    better = training.best is None or value > training.best
    if better:
        training.best = value
    return better


def _save(training: Training, *, best: bool) -> None:
    if training.world.main:
        save_checkpoint(
            training.folder,
            step=training.done,
            tensors={
                "model": training.model.state_dict(),
                "optimizer": optimizer_tensors(training.optimizer, training.model),
                **training.extra_tensors(),
            },
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
