"""Count the multiply-accumulates torch really performs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted_macs(work: Callable[[], object], *, gradients: bool = False) -> float:
    """Run `work` and count; attention takes its plain form, which every torch version counts."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, torch.set_grad_enabled(gradients):
        work()
    return counter.get_total_flops() / 2
