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
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from tatscli.engine.bad_batch import refuse_bad_steps
from tatscli.engine.device import autocast
from tatscli.engine.feed import Feed
from tatscli.engine.halfway import Halfway, State
from tatscli.engine.leaving import Leaving
from tatscli.engine.metrics import Averages, MetricsLog, metrics_log
from tatscli.engine.pace import Pace
from tatscli.engine.parallel import shards_of, whole_weights, without_averaging
from tatscli.engine.part import Lesson
from tatscli.engine.rng import draws_at, seed_torch
from tatscli.engine.saving import Saver, saving
from tatscli.engine.signals import StopNow, StopRequest, heeding, stop_requests
from tatscli.engine.telling import ended, estimate, nothing_left, stopped, write_line
from tatscli.engine.training import Training


def train(training: Training) -> dict[str, Any]:
    """Run the remaining steps.

    Returns:
        `steps` done of `total_steps`; `stopped_by`: the key that ended it before these; `seconds`,
        and of a step `seconds_per_step`; the last averages (`loss`, ...); `skipped`: how many steps
        were skipped because their numbers were bad; and `best_score` where scores exist.

    Raises:
        Stopped: After a signal, with a checkpoint saved.
        CheckpointError: If one cannot be written.
        TatsError: If `run.max_bad_steps` steps in a row were bad.
    """
    schedule, run, last = training.schedule, training.run, training.last
    if training.done >= last and not training.unscored:
        training.reporter.warn(nothing_left(training.done, schedule.total_steps, run))
        return _result(training)
    save_steps = max(1, round(run.save_every * schedule.steps_per_epoch))
    folder = training.folder if training.world.main else None
    opened_log = metrics_log(folder, run, training.done, training.meta, training.reporter)
    averages, means = Averages(), dict[str, float]()
    started, first = time.perf_counter(), training.done
    bar = training.reporter.progress(
        total=last, initial=training.done, description="steps", unit="step"
    )
    training.model.train()
    pace = Pace(training)

    def tell() -> None:
        means.clear()
        means.update(averages.read() | pace.read())
        bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}", refresh=False)
        if training.check is not None:
            training.check(means)
        write_line(training, log, means | saver.waited(), started)
        refuse_bad_steps(training)

    # Trackers may wait for a server: until they are open, and as they close, Ctrl-C is Ctrl-C.
    with (
        opened_log as log,
        stop_requests() as request,
        bar,
        _settled_garbage() as settle,
        Feed(training.batches(training.done), training.device) as feed,
        saving(training) as saver,
    ):
        halfway = Halfway(training.parts, schedule.accumulation)
        leaving = Leaving(feed, request, halfway)
        if training.unscored:
            with pace.aside():
                better = _finish_pass(training, log, means, request, saver)
            if not training.unscored:
                saver.save(best=better)
        while training.done < last:
            saver.check()
            mark = averages.mark()
            if not optimise(training, feed, averages, leaving.take):
                averages.go_back(mark)
                break
            training.done += 1
            bar.update()
            done = training.done
            if done % run.log_every == 0 or done == last:
                tell()
            better = False
            if done % schedule.steps_per_epoch == 0:
                with pace.aside():
                    better = _finish_pass(training, log, means, request, saver)
            if better or done % save_steps == 0 or done == last:
                refuse_bad_steps(training)
                saver.save(best=better)
            if done - first == 1 and done < last:
                settle()
                pace.settled()
            if done - first == 50:
                estimate(training, last, (time.perf_counter() - started) / 50)
        if request.exit_code and (training.done < last or training.unscored):
            if not averages.empty:
                tell()
            _leave(training, saver, halfway.state() if leaving.amid else None)
            raise stopped(training, last, saver.saved, request.exit_code)
        per_step = pace.per_step()
    seconds = time.perf_counter() - started
    if training.done > first:
        training.reporter.info(ended(training, first, seconds, per_step))
        means["seconds_per_step"] = per_step
    return _result(training, seconds, means)


def _result(
    training: Training, seconds: float = 0.0, means: Mapping[str, float] | None = None
) -> dict[str, Any]:
    total = training.schedule.total_steps
    result = {
        "steps": training.done,
        "total_steps": total,
        "stopped_by": None if training.done >= total else "run.max_steps",
        "seconds": seconds,
        **(means or {}),
        "skipped": training.bad_steps.skipped,
    }
    return result if training.best is None else {**result, "best_score": training.best}


def optimise(
    training: Training,
    feed: Feed,
    averages: Averages,
    take: Callable[[int], Any | None] | None = None,
) -> bool:
    """Take one optimiser step, or skip it, and add up its metrics; return whether there was one.

    Args:
        training: What is trained.
        feed: Gives the micro-batches.
        averages: Take the metrics.
        take: Asks the feed for a micro-batch, by its number; where that returns None, the step is
            given up.
    """
    losses = list[Tensor]()
    parts = training.schedule.accumulation
    rates = {name: learner.begin(training.done) for name, learner in training.learners.items()}
    began = time.perf_counter()
    feed.begin()
    for part in range(parts):
        batch = take(part) if take is not None else feed.take(lambda: False)
        if batch is None:
            return False
        averages.add({"replaced": float(batch.replaced)})
        # Gradients cross the network once a step, with the last micro-batch.
        with without_averaging(training.synced) if part < parts - 1 else nullcontext():
            lesson = forward(training, batch, part)
            assert lesson.loss is not None
            loss = lesson.loss / parts
            scale = training.loss_scale
            (loss if scale is None else scale.scaled(loss)).backward()
        losses.append(torch.as_tensor(lesson.metrics.get("loss", lesson.loss)).detach())
        averages.add({"loss": lesson.loss, **lesson.metrics})
        _tell(training, lesson)
    skip = training.bad_steps.judge(losses)
    norms = {name: learner.update(skip=skip) for name, learner in training.learners.items()}
    for name, norm in norms.items():
        if norm is not None:
            prefix = _prefix(training, name)
            averages.add({f"{prefix}grad_norm": norm})
            if prefix:  # the model's own are told, and end the run where there are too many
                averages.add({f"{prefix}skipped": (~norm.isfinite()).float()})
    for one in training.parts.values():
        lesson = one.after_step(training.done + 1, training.schedule.total_steps)
        averages.add(lesson.metrics)
        _tell(training, lesson)
    averages.add(training.bad_steps.note(next(iter(norms.values())), feed.rows))
    averages.add({f"{_prefix(training, name)}lr": rate for name, rate in rates.items()})
    worked = time.perf_counter() - began - feed.waited
    averages.add({"data_seconds": feed.waited, "step_seconds": worked})
    return True


def forward(training: Training, batch: Any, part: int) -> Lesson:
    """Take the forward pass of a micro-batch, on its device; what it draws follows from its place:
    seed, step, number of the micro-batch and rank."""
    seed, world = training.run.seed, training.world
    seed_torch(seed, training.done, part, world.rank)
    first = (part * world.size + world.rank) * len(batch.row_B)
    with autocast(training.device, training.dtype):
        return training.step(batch, draws_at(seed, training.done, first=first))


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


def _leave(training: Training, saver: Saver, state: State | None) -> None:
    """Save where a training stands that was told to stop, if that is not on disk yet."""
    if training.done and saver.saved != training.done and (state is None or state):
        saver.save(best=False, state=state)
    saver.finish()


def _finish_pass(
    training: Training,
    log: MetricsLog | None,
    means: dict[str, float],
    request: StopRequest,
    saver: Saver,
) -> bool:
    """Score the model after a pass, and draw; return whether it is the best so far.

    A signal cuts scoring short; it is then done on resuming, so that the run becomes the same.
    """
    epoch = training.done // training.schedule.steps_per_epoch
    training.unscored, scored = True, None
    try:
        with request.insisting():
            for _ in heeding([epoch]):
                with whole_weights(training.model, training.copies):
                    scored = training.score(epoch) if training.score else None
    except StopNow as now:
        request.tell(now.code)
        if now.alone and training.world.size > 1:  # the others may be in the midst of it
            if not shards_of(training.model) and saver.saved != training.done:
                saver.save(best=False)  # which takes no other process, where each has all weights
            raise stopped(training, training.last, saver.saved, now.code) from None
        return False
    finally:
        training.model.train()
    training.unscored = False
    better = scored is not None and _note(training, log, means, epoch, *scored)
    with suppress(StopNow), request.insisting(), whole_weights(training.model, training.copies):
        _draw(training, log, epoch)
    return better


def _note(
    training: Training,
    log: MetricsLog | None,
    means: dict[str, float],
    epoch: int,
    value: float | None,
    metrics: dict[str, float],
) -> bool:
    """Write down the score of a pass; return whether it is the best so far."""
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


def _draw(training: Training, log: MetricsLog | None, epoch: int) -> None:
    """Show the pictures of a pass to the trackers."""
    if log is None or training.pictures is None:
        return
    for name, image_HWC in training.pictures(epoch).items():
        log.picture(training.done, name, image_HWC)
