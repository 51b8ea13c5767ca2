"""Numbers derived from a recipe and the size of the data: batches, steps, learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tatscli.errors import RecipeError
from tatscli.recipe.schema import Optim


@dataclass(frozen=True, slots=True)
class Schedule:
    """The schedule of a training; steps are optimiser steps, batches count videos."""

    videos: int
    repeats: int
    world: int
    batch_per_device: int
    accumulation: int
    total_batch: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    peak_lr: float
    min_lr: float
    warmup_lr: float

    @property
    def passes(self) -> float:
        """How many views of each video are seen."""
        return self.total_steps * self.total_batch * self.repeats / self.videos

    @property
    def lr_scale(self) -> float:
        """The factor of the linear scaling rule."""
        return self.total_batch / 256


def derive_batch(optim: Optim, *, world: int) -> tuple[int, int]:
    """Return the videos per device and forward pass, and the number of accumulation steps.

    Raises:
        RecipeError: If the total batch cannot be divided evenly.
    """
    per_device = min(optim.batch_per_device, max(1, optim.total_batch // world))
    if optim.total_batch % (per_device * world):
        raise RecipeError(
            f"`total_batch: {optim.total_batch}` is not a multiple of "
            f"{per_device} videos x {world} devices",
            hint="choose a `batch_per_device` that divides total_batch / devices",
        )
    return per_device, optim.total_batch // (per_device * world)


def derive_schedule(optim: Optim, *, videos: int, repeats: int, world: int) -> Schedule:
    """Work out accumulation, steps and learning rates.

    The effective learning rate is `base_lr` x total batch / 256; repeated views of a video are not
    counted (VideoMAE, run_class_finetuning.py). An incomplete last batch of an epoch is dropped; a
    data set smaller than the total batch has one step per epoch.

    Raises:
        RecipeError: If the total batch cannot be divided over the devices.
    """
    per_device, accumulation = derive_batch(optim, world=world)
    steps_per_epoch = max(1, videos // optim.total_batch)
    total_steps = steps_per_epoch * optim.epochs
    scale = optim.total_batch / 256
    return Schedule(
        videos=videos,
        repeats=repeats,
        world=world,
        batch_per_device=per_device,
        accumulation=accumulation,
        total_batch=optim.total_batch,
        epochs=optim.epochs,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        warmup_steps=min(math.ceil(optim.warmup_epochs * steps_per_epoch), total_steps),
        peak_lr=optim.base_lr * scale,
        min_lr=optim.min_lr * scale,
        warmup_lr=optim.warmup_lr * scale,
    )
