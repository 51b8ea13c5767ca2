"""Randomness as a function of position.

Every random number of a training depends on (seed, step, micro-step, rank) and on nothing that went
before, so resuming needs no saved generator state and cannot get it wrong.
"""

from __future__ import annotations

import torch

from tatscli.seeding import seed_of


def random_at(*position: int) -> torch.Generator:
    """Seed torch's global generators (dropout, drop path) for a position; return one for masks.

    Returns:
        A CPU generator, independent of the global ones.
    """
    seed = seed_of(*position, 0)
    # `torch.manual_seed` would note the call stack of every step for a GPU that may never come.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    return torch.Generator().manual_seed(seed_of(*position, 1))
