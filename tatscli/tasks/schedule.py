"""The schedule of a training: checked before it starts, and described for the user."""

from __future__ import annotations

from tatscli.engine.session import Session
from tatscli.errors import RecipeError
from tatscli.recipe.derive import Schedule
from tatscli.recipe.doubts import contradiction, doubts
from tatscli.recipe.schema import Optim, Recipe, Run

RATES = "`min_lr` and `warmup_lr` may be `base_lr` at most"


def check_schedule(
    recipe: Recipe, optim: Optim, schedule: Schedule, here: Session, *, resume: bool
) -> None:
    """Refuse contradictory learning rates, and warn of settings that are rarely intended.

    Raises:
        RecipeError: If a new run has contradictory learning rates; a resumed one only warns.
    """
    problem = contradiction(optim)
    if problem is not None and not resume:
        raise RecipeError(problem, hint=RATES)
    found = [*([problem] if problem else []), *doubts(recipe, optim, schedule)]
    for one in found if here.world.main else ():
        here.reporter.warn(one)


def schedule_line(schedule: Schedule, optim: Optim, run: Run) -> str:
    """Describe the schedule of a training in one line."""
    s = schedule
    views = f", {s.repeats} views of each" if s.repeats > 1 else ""
    batch = batch_words(s.total_batch, s.batch_per_device, s.accumulation, world=s.world)
    text = (
        f"training on {s.videos} videos{views}: {s.total_steps} steps = {s.epochs} epochs x "
        f"{s.steps_per_epoch}; batch {batch}; peak lr {s.peak_lr:.3g} = "
        f"{optim.base_lr:g} x {s.total_batch} / 256, warm-up {s.warmup_steps} steps"
    )
    limit = run.max_steps
    return text if limit is None else f"{text}; `run.max_steps` stops it after step {limit}"


def batch_words(total: int, per_device: int, accumulation: int, *, world: int) -> str:
    """Describe how the total batch is made up."""
    devices = "1 device" if world == 1 else f"{world} devices"
    return f"{total} = {per_device} videos x {devices} x {accumulation} accumulated"


def schedule_rows(schedule: Schedule) -> list[tuple[str, str]]:
    """Return the rows of a dry run's table about the schedule."""
    s = schedule
    batch = batch_words(s.total_batch, s.batch_per_device, s.accumulation, world=s.world)
    return [
        ("total batch", batch),
        ("views per step", f"{s.total_batch * s.repeats} ({s.repeats} of each video)"),
        ("steps", f"{s.total_steps} = {s.epochs} epochs x {s.steps_per_epoch}"),
        ("warm-up steps", str(s.warmup_steps)),
        ("peak lr", f"{s.peak_lr:.3g} = base lr x {s.total_batch} / 256"),
        ("views of each video", f"{s.passes:.4g}"),
    ]
