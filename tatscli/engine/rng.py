"""Randomness as a function of position.

Every random number of a training depends on (seed, step, micro-step, rank) and on nothing that went
before, so resuming needs no saved generator state and cannot get it wrong.
"""

from __future__ import annotations

import hashlib

import torch


def seed_at(*position: int) -> int:
    """Return a 63-bit seed for a position such as (seed, step, micro-step, rank)."""
    digest = hashlib.blake2b(repr(position).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_at(*position: int) -> torch.Generator:
    """Seed torch's global generators (dropout, drop path) for a position; return one for masks.

    Returns:
        A CPU generator, independent of the global ones.
    """
    torch.manual_seed(seed_at(*position, 0))
    return torch.Generator().manual_seed(seed_at(*position, 1))
