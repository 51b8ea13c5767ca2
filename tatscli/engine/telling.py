"""What a training says on its way: lines of metrics, estimates, and how it ended."""

from __future__ import annotations

import math
import time

from tatscli.console import duration
from tatscli.engine.metrics import MetricsLog
from tatscli.engine.training import Training
from tatscli.errors import Exit, Stopped
from tatscli.recipe.schema import Run


def nothing_left(done: int, total: int, run: Run) -> str:
    """Say that there is no step to take, and how the run goes on if it can.

    Args:
        done: Steps done.
        total: Steps of the full schedule.
        run: The recipe's `run` section.
    """
    if done >= total:
        return f"the run is complete: all {total} steps are done"
    return (
        f"nothing to do: the run has reached `run.max_steps: {run.max_steps}`, and "
        f"{total - done} of {total} steps are left; `--resume run.max_steps=null` continues it"
    )


def ended(training: Training, started: int, seconds: float, per_step: float) -> str:
    """Say how far a training came, what ended it, and how long it took.

    Args:
        training: The training.
        started: The step it began after.
        seconds: How long it ran.
        per_step: Seconds a step.
    """
    done, total = training.done, training.schedule.total_steps
    steps = "1 step" if done - started == 1 else f"{done - started} steps"
    took = f"{steps} in {duration(seconds)}, {per_step:.3g} s a step"
    if done >= total:
        return f"finished after step {done} of {total}: {took}"
    return (
        f"stopped after step {done} of {total} by `run.max_steps: {training.run.max_steps}`: "
        f"{took}; the full schedule takes about {duration(total * per_step)}, without scoring"
    )


def stopped(training: Training, last: int, saved: int | None, code: int) -> Stopped:
    """Return what ends a training that was told to stop.

    Args:
        training: The training.
        last: The step it would have stopped after.
        saved: The step of its last checkpoint, if there is one.
        code: The exit code.
    """
    what, hint = f"stopped after step {training.done} of {last}", "continue with `--resume`"
    if saved == training.done:
        what += f", checkpoints are in `{training.folder}`"
    elif saved is None:
        what += ", before the first checkpoint"
        hint = "start again with `--resume auto` or `--overwrite`"
    else:
        what += (
            f", which could not be saved any more: the last checkpoint in `{training.folder}` is "
            f"that of step {saved}"
        )
    return Stopped(what, hint, exit_code=Exit(code))


def write_line(
    training: Training, log: MetricsLog | None, means: dict[str, float], started: float
) -> None:
    """Write a line of metrics, and warn where data is what the time goes to."""
    if log is None:
        return
    epoch = training.done / training.schedule.steps_per_epoch
    wall = time.perf_counter() - started
    line = {"step": training.done, "epoch": round(epoch, 4), "wall": round(wall, 3), **means}
    log.write(line)
    known = {key: value for key, value in means.items() if not math.isnan(value)}
    numbers = "  ".join(f"{key} {value:.4g}" for key, value in known.items())
    training.reporter.detail(f"step {training.done}  {numbers}")
    waited, worked = means["data_seconds"], means["step_seconds"]
    if training.done > 20 and waited > 0.3 * (waited + worked):
        training.reporter.warn(
            "more than 30 % of the time is spent waiting for data; raise `data.workers`, "
            "or prepare the store with a smaller `--short-side`",
            once=True,
        )


def estimate(training: Training, last: int, seconds: float) -> None:
    """Say how long the rest will take."""
    left = last - training.done
    training.reporter.info(
        f"{seconds:.3g} s a step: about {duration(left * seconds)} left for {left} steps"
    )
