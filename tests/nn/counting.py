"""Count the multiply-accumulates torch really performs, and work out what they should be."""

from __future__ import annotations

from collections.abc import Callable

from torch import set_grad_enabled
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted_macs(work: Callable[[], object], *, gradients: bool = False) -> float:
    """Run `work` and count; attention takes its plain form, which every torch version counts."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter, set_grad_enabled(gradients):
        work()
    return counter.get_total_flops() / 2


def block_macs(tokens: int, width: int) -> int:
    """A block: 4 D^2 (q, k, v, output) + 8 D^2 (MLP) per token, two products of K x K x D."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def regressor_macs(visible: int, hidden: int, width: int, depth: int, mlp: int) -> int:
    """CAE's regressor: q and output of the hidden, k and v of all, attention of hidden over all."""
    linear = hidden * (2 * width**2 + 2 * width * mlp) + 2 * (visible + hidden) * width**2
    return depth * (linear + 2 * hidden * (visible + hidden) * width)


def trajectory_macs(tokens: int, width: int, heads: int, slices: int) -> int:
    """A trajectory-attention block in the folded form, with its MLP.

    Per token: q, k, v (3 D^2), own-frame query, folded key, folded value, output (4 D^2) and MLP
    (8 D^2); over space two products of N x N x D; over time two of N x T x D per head.
    """
    linear = 15 * tokens * width**2
    return linear + 2 * tokens**2 * width + 2 * tokens * slices * heads * width


def recomputed_trajectory_macs(
    tokens: int, width: int, heads: int, slices: int, *, kept: bool
) -> int:
    """What the backward pass of trajectory attention computes a second time.

    Own-frame query and folded key (2 D^2 per token), the products over time, and the products over
    space unless the trajectory tokens are `kept`.
    """
    again = 2 * tokens * width**2 + 2 * tokens * slices * heads * width
    return again if kept else again + 2 * tokens**2 * width
