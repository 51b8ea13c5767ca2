"""Seeds that depend on their parts only: not on process, worker, platform or Python's `hash`."""

from __future__ import annotations

import random
from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """Return a 63-bit seed for a tuple of numbers and names."""
    digest = blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def random_of(*parts: int | str) -> random.Random:
    """Return a fresh random stream for a tuple of numbers and names."""
    return random.Random(seed_of(*parts))
