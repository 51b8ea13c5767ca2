"""Multiply-accumulates of transformer parts from their formulae, without norms and softmax.

A forward pass takes two floating-point operations per multiply-accumulate, a training step three
forward passes and what is computed again.
"""

from __future__ import annotations


def block_macs(tokens: int, width: int) -> int:
    """Count a block: 4 D^2 (q, k, v, output) + 8 D^2 (MLP) per token, two products of K x K x D."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def trajectory_macs(tokens: int, width: int, heads: int, slices: int) -> int:
    """Count a trajectory-attention block in the folded form, with its MLP.

    Per token: q, k, v (3 D^2), own-frame query, folded key, folded value, output (4 D^2) and MLP
    (8 D^2); over space two products of N x N x D; over time two of N x T x D per head.
    """
    linear = 15 * tokens * width**2
    return linear + 2 * tokens**2 * width + 2 * tokens * slices * heads * width


def recomputed_trajectory_macs(
    tokens: int, width: int, heads: int, slices: int, *, kept: bool
) -> int:
    """Count what the backward pass of trajectory attention computes a second time.

    Own-frame query and folded key (2 D^2 per token), the products over time, and the products over
    space unless the trajectory tokens are `kept`.
    """
    again = 2 * tokens * width**2 + 2 * tokens * slices * heads * width
    return again if kept else again + 2 * tokens**2 * width
