"""How many threads a model computes with on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

SMALL = 2e10
"""Floating-point operations of a step below which `auto` takes one thread. There a second one gains
nothing, and whenever another program needs its core, every operation waits for it."""


@contextmanager
def use_threads(choice: int | Literal["auto"], flops: float, device: torch.device) -> Iterator[str]:
    """Compute with as many threads as `run.threads` says, and as before afterwards.

    Args:
        choice: A number, or `auto`.
        flops: Floating-point operations of a step, roughly.
        device: Where the model is; only on a CPU do threads matter.

    Yields:
        How many there are, and why.
    """
    before = torch.get_num_threads()
    if choice != "auto":
        threads, reason = choice, "set in the recipe"
    elif "OMP_NUM_THREADS" in os.environ:
        threads, reason = before, "set by OMP_NUM_THREADS"
    elif device.type == "cpu" and flops < SMALL:
        threads, reason = 1, f"a step is only {flops / 1e9:.2g} GFLOP"
    else:
        threads, reason = before, "torch's default"
    torch.set_num_threads(threads)
    try:
        yield f"{threads}: {reason}"
    finally:
        torch.set_num_threads(before)
