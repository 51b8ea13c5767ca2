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
from contextlib import contextmanager, nullcontext
from typing import Any

from tatscli.engine import distributed
from tatscli.engine.bad_steps import BadSteps
from tatscli.engine.device import autocast
from tatscli.engine.feed import Feed
from tatscli.engine.metrics import Averages, MetricsLog, metrics_log
from tatscli.engine.pace import Pace
from tatscli.engine.part import Lesson
from tatscli.engine.rng import random_at
from tatscli.engine.saving import save
from tatscli.engine.signals import StopRequest, stop_requests
from tatscli.engine.telling import estimate, nothing_left, stopped, write_line
from tatscli.engine.training import Training
from tatscli.errors import DataError


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
        training.reporter.warn(nothing_left(training))
    save_steps = max(1, round(run.save_every * schedule.steps_per_epoch))
    folder = training.folder if training.world.main else None
    opened_log = metrics_log(folder, run, training.done, training.meta, training.reporter)
    averages, means = Averages(), dict[str, float]()
    main = next(iter(training.learners.values()))
    bad_steps = BadSteps(main, run, training.folder, training.world.rank)
    started, first = time.perf_counter(), training.done
    feed = Feed(training.batches(training.done), training.device)
    bar = training.reporter.progress(
        total=last, initial=training.done, description="steps", unit="step"
    )
    training.model.train()
    pace = Pace(training)
    # Trackers may wait for a server: until they are open, and as they close, Ctrl-C is Ctrl-C.
    with opened_log as log, stop_requests() as request, bar, _settled_garbage() as settle:
        while training.done < last:
            try:
                bad_steps.remember(optimise(training, feed, averages))
            except DataError:
                # A signal to the whole job ends the loader's workers too: save what is done.
                if not request.exit_code:
                    raise
                # Alone and at the start of a step everything belongs to the same step.
                if training.world.size == training.schedule.accumulation == 1:
                    save(training, best=False)
                raise stopped(training, last, request.exit_code) from None
            training.done += 1
            bar.update()
            done = training.done
            stop = _agreed_stop(training, request)
            if done % run.log_every == 0 or done == last or stop:
                means = averages.read() | pace.read()
                bar.set_postfix(loss=f"{means.get('loss', math.nan):.4f}", refresh=False)
                if training.check is not None:
                    training.check(means)
                write_line(training, log, means, started)
                bad_steps.check(done, training.reporter)
            better = False
            if done % schedule.steps_per_epoch == 0:
                with pace.aside():
                    better = _score(training, log, means)
                    _draw(training, log)
            if better or done % save_steps == 0 or done == last or stop:
                save(training, best=better)
            if done - first == 1:
                settle()
            if done - first == 50:
                estimate(training, last, (time.perf_counter() - started) / 50)
            if stop:
                raise stopped(training, last, stop)
    result: dict[str, Any] = {
        "steps": training.done,
        "seconds": time.perf_counter() - started,
        **means,
    }
    if training.best is not None:
        result["best_score"] = training.best
    return result


def optimise(training: Training, feed: Feed, averages: Averages) -> list[int]:
    """Take one optimiser step, add up its metrics, and return where its samples came from."""
    parts = training.schedule.accumulation
    rates = {name: learner.begin(training.done) for name, learner in training.learners.items()}
    began = time.perf_counter()
    feed.begin()
    for part in range(parts):
        batch = feed.take(lambda: False)
        assert batch is not None
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


def _agreed_stop(training: Training, request: StopRequest) -> int:
    """Return the exit code if any rank was told to stop, so that all leave after the same step."""
    return int(distributed.largest(request.exit_code, training.device))


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
