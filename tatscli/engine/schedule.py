"""Learning rate over a training: linear warm-up, then cosine, per optimiser step."""

from __future__ import annotations

import math

from tatscli.recipe.derive import Schedule


def lr_at(step: int, schedule: Schedule) -> float:
    """Return the learning rate of optimiser step `step`, counted from 0."""
    if step < schedule.warmup_steps:
        share = step / max(1, schedule.warmup_steps - 1)
        return schedule.warmup_lr + share * (schedule.peak_lr - schedule.warmup_lr)
    share = (step - schedule.warmup_steps) / max(1, schedule.total_steps - schedule.warmup_steps)
    return schedule.min_lr + 0.5 * (schedule.peak_lr - schedule.min_lr) * (
        1 + math.cos(math.pi * min(share, 1.0))
    )
