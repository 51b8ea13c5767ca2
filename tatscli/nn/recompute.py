"""Computing again in the backward pass what was not kept in the forward pass.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

KEPT_VALUES = 2**22
"""So few numbers, 16 MiB, are kept rather than computed again: the insides of a small sampler."""

GROUP_VALUES = 2**25
"""Numbers of a graph, 128 MiB, that may exist at a time while it is computed again."""

BUSY_VALUES = 2**30
"""The same on a GPU, which is idle between the kernels of small groups."""


def recomputed(
    stage: Callable[..., Result], *inputs: object, small: bool = False, random: bool = False
) -> Result:
    """Run a stage whose insides are not kept for the backward pass but computed again.

    What is small anyway is kept: computing it again would take longer than it saves memory.

    Args:
        stage: A function of tensors.
        inputs: What it is given.
        small: Keep its insides.
        random: It draws random numbers, which have to be the same the second time.
    """
    if not torch.is_grad_enabled() or small:
        return stage(*inputs)
    result: Result = checkpoint(stage, *inputs, use_reentrant=False, preserve_rng_state=random)
    return result


def recomputed_by_clip(
    stage: Callable[[Tensor], tuple[Tensor, ...]],
    tokens_BND: Tensor,
    *,
    values: int,
    small: bool = False,
    random: bool = False,
) -> tuple[Tensor, ...]:
    """Run a stage that treats every clip alone, as `recomputed` does, for some clips at a time.

    So the graphs of all clips never exist together. A group has as many clips as `GROUP_VALUES`
    allows, at least one.

    Args:
        stage: A function from (B, N, D) to results of as many clips.
        tokens_BND: What it is given.
        values: Numbers in a clip's graph.
        small: As in `recomputed`: all clips at once, and everything is kept.
        random: As in `recomputed`.
    """
    if not torch.is_grad_enabled() or small:
        return stage(tokens_BND)
    on_gpu = tokens_BND.device.type in ("cuda", "mps")
    at_once = BUSY_VALUES if on_gpu else GROUP_VALUES
    groups = tokens_BND.split(max(1, at_once // values))
    results = [recomputed(stage, group, random=random) for group in groups]
    if len(results) == 1:
        return results[0]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
