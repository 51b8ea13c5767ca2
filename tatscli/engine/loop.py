"""The one training loop: accumulation, precision, schedule, logging, checkpoints, signals.

It knows nothing of video: a task hands it learners, a function from a batch to a loss, and an
endless iterator of micro-batches that starts at the step where training starts. Between two log
lines it waits for nothing on the device.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from tatscli.engine.bad_steps import BadSteps
from tatscli.engine.device import autocast
from tatscli.engine.feed import Feed
from tatscli.engine.halfway import Halfway, State
from tatscli.engine.leaving import Leaving
from tatscli.engine.metrics import Averages, MetricsLog, metrics_log
from tatscli.engine.part import Lesson
from tatscli.engine.rng import random_at
from tatscli.engine.saving import Saver, saving
from tatscli.engine.signals import StopNow, StopRequest, heeding, stop_requests
from tatscli.engine.telling import estimate, nothing_left, stopped, write_line
from tatscli.engine.training import Training


def train(training: Training) -> dict[str, Any]:
    """Run the remaining steps.

    Returns:
        `steps`, `seconds`, the last averages (`loss`, ...) and `best_score` where scores exist.

    Raises:
        Stopped: After a signal, with a checkpoint saved.
        CheckpointError: If one cannot be written.
        TatsError: If loss or gradients are not finite for `run.max_bad_steps` steps in a row.
    """
    schedule, run, last = training.schedule, training.run, training.last
    if training.done >= last:
        training.reporter.warn(nothing_left(training))
    save_steps = max(1, round(run.save_every * schedule.steps_per_epoch))
    folder = training.folder if training.world.main else None
    opened_log = metrics_log(folder, run, training.done, training.meta, training.reporter)
    averages, means = Averages(), dict[str, float]()
    main = next(iter(training.learners.values()))
    bad_steps = BadSteps(main, run, training.folder, training.world.rank)
    started, first = time.perf_counter(), training.done
    bar = training.reporter.progress(
        total=last, initial=training.done, description="steps", unit="step"
    )
    training.model.train()

    def tell() -> None:
        means.clear()
        means.update(averages.read())
        bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}", refresh=False)
        if training.check is not None:
            training.check(means)
        write_line(training, log, means | saver.waited(), started)
        bad_steps.check(training.done, training.reporter)

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
            better = _finish_pass(training, log, means, request, saver)
            if not training.unscored:
                saver.save(best=better)
        while training.done < last:
            saver.check()
            mark = averages.mark()
            rows = optimise(training, feed, averages, leaving.take)
            if rows is None:
                averages.go_back(mark)
                break
            bad_steps.remember(rows)
            training.done += 1
            bar.update()
            done = training.done
            if done % run.log_every == 0 or done == last:
                tell()
            better = False
            if done % schedule.steps_per_epoch == 0:
                better = _finish_pass(training, log, means, request, saver)
            if better or done % save_steps == 0 or done == last:
                saver.save(best=better)
            if done - first == 1:
                settle()
            if done - first == 50:
                estimate(training, last, (time.perf_counter() - started) / 50)
        if request.exit_code and (training.done < last or training.unscored):
            if not averages.empty:
                tell()
            _leave(training, saver, halfway.state() if leaving.amid else None)
            raise stopped(training, last, saver.saved, request.exit_code)
    result: dict[str, Any] = {
        "steps": training.done,
        "seconds": time.perf_counter() - started,
        **means,
    }
    if training.best is not None:
        result["best_score"] = training.best
    return result


def optimise(
    training: Training,
    feed: Feed,
    averages: Averages,
    take: Callable[[int], Any | None] | None = None,
) -> list[int] | None:
    """Take one optimiser step, add up its metrics, and return where its samples came from.

    Args:
        training: What is trained.
        feed: Gives the micro-batches.
        averages: Take the metrics.
        take: Asks the feed for a micro-batch, by its number; where that returns None, the step is
            given up, and so does this.
    """
    parts = training.schedule.accumulation
    rates = {name: learner.begin(training.done) for name, learner in training.learners.items()}
    began = time.perf_counter()
    feed.begin()
    for part in range(parts):
        batch = take(part) if take is not None else feed.take(lambda: False)
        if batch is None:
            return None
        averages.add({"replaced": float(batch.replaced)})
        generator = random_at(training.run.seed, training.done, part, training.world.rank)
        # Gradients cross the network once a step, with the last micro-batch.
        hold = training.synced.no_sync() if training.synced and part < parts - 1 else nullcontext()
        with hold:
            with autocast(training.device, training.dtype):
                lesson = training.step(batch, generator)
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
    worked = time.perf_counter() - began - feed.waited
    averages.add({"data_seconds": feed.waited, "step_seconds": worked})
    return feed.rows


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
                scored = training.score(epoch) if training.score else None
    except StopNow as now:
        request.tell(now.code)
        if now.alone and training.world.size > 1:  # the others may be in the midst of it
            raise stopped(training, training.last, saver.saved, now.code) from None
        return False
    finally:
        training.model.train()
    training.unscored = False
    better = scored is not None and _note(training, log, means, epoch, *scored)
    with suppress(StopNow), request.insisting():
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
