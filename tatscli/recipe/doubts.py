"""Optimisation settings that contradict each other, or that leave something without effect."""

from __future__ import annotations

from tatscli.recipe.derive import Schedule
from tatscli.recipe.schema import FinetuneOptim, LearnedMask, Optim, Recipe, ScheduleMask


def contradiction(optim: Optim) -> str | None:
    """Say which learning rates cannot be meant; None where they fit."""
    section, peak = section_of(optim), f"{optim.base_lr:g}"
    if optim.min_lr > optim.base_lr:
        return (
            f"`{section}.min_lr: {optim.min_lr:g}` is above `{section}.base_lr: {peak}`: after "
            "warm-up the learning rate would rise to the end"
        )
    if optim.warmup_lr > optim.base_lr and optim.warmup_epochs:
        return (
            f"`{section}.warmup_lr: {optim.warmup_lr:g}` is above `{section}.base_lr: {peak}`: the "
            "learning rate would fall during warm-up"
        )
    return None


def doubts(recipe: Recipe, optim: Optim, schedule: Schedule) -> list[str]:
    """Return warnings about settings that are allowed, but seldom meant.

    Args:
        recipe: The recipe.
        optim: The section of it that the training goes by.
        schedule: Derived from that section.
    """
    section, total = section_of(optim), schedule.total_steps
    found = []
    if schedule.warmup_steps >= total > 1:
        found.append(
            f"all {total} steps are warm-up (`{section}.warmup_epochs: {optim.warmup_epochs:g}`, "
            f"`{section}.epochs: {optim.epochs}`): the learning rate rises to the end and never "
            "decays"
        )
    if schedule.total_batch > schedule.videos:
        found.append(
            f"`{section}.total_batch: {schedule.total_batch}` is more than the {schedule.videos} "
            "training videos: every step takes some of them more than once"
        )
    judge = None if recipe.tokenizer is None else recipe.tokenizer.discriminator
    if judge is not None and judge.start >= total:
        found.append(
            f"`tokenizer.discriminator.start: {judge.start}` is not reached in {total} steps: the "
            "discriminator takes no part"
        )
    masks = recipe.mask.both if isinstance(recipe.mask, ScheduleMask) else (recipe.mask,)
    masked = not isinstance(optim, FinetuneOptim) or recipe.finetune.auxiliary is not None
    if masked and any(isinstance(one, LearnedMask) and one.warmup == 1 for one in masks):
        found.append(
            "`mask.warmup: 1` makes all steps the sampler's warm-up: its learning rate never "
            "decays, and `tats` draws uniformly to the end"
        )
    return found


def section_of(optim: Optim) -> str:
    """Name the section of a recipe that an optimiser's settings are."""
    return "finetune.optim" if isinstance(optim, FinetuneOptim) else "optim"
