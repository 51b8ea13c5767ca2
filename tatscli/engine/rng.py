"""Randomness as a function of position.

No random number of a training depends on those before it, so resuming needs no saved generator
state and cannot get it wrong. Masks, and what else is drawn for a clip, are functions of (seed,
step, place of the clip in the step's total batch), however many processes share it; dropout and
drop path are functions of (seed, step, micro-step, rank).
"""

from __future__ import annotations

import torch

from tatscli.draws import Draws
from tatscli.seeding import seed_of


def seed_torch(*position: int) -> None:
    """Seed torch's global generators (weights, dropout, drop path) for a position."""
    seed = seed_of(*position, 0)
    # `torch.manual_seed` would note the call stack of every step for a GPU that may never come.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def draws_at(seed: int, step: int, *, first: int) -> Draws:
    """Return what is drawn for clips of an optimiser step.

    Args:
        seed: Of the training.
        step: From 0.
        first: Place of the first of them among all clips of the step.
    """
    return Draws(seed_of("draws", seed, step), first=first)
