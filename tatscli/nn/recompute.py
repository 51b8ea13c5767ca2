"""Recomputing activations in the backward pass instead of storing them.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")

KEPT_VALUES = 2**22
"""Up to so many numbers (16 MiB) are kept instead of recomputed: those of a small sampler."""

GROUP_VALUES = 2**25
"""Numbers of a graph (128 MiB) that may exist at a time while it is recomputed."""

BUSY_VALUES = 2**30
"""The same on a GPU, which is idle between the kernels of small groups."""

INSIDE_VALUES = 2**26
"""Numbers that are kept within a group, which exists only for a moment."""

FEWEST = 4
"""Clips of a batch from which it pays to compute again. When that begins, other networks' gradients
are there and their activations gone: those of fewer clips are no larger than the gradients."""

_in_group: ContextVar[bool] = ContextVar("_in_group", default=False)
_as_on_gpu: ContextVar[bool] = ContextVar("_as_on_gpu", default=False)


@contextmanager
def grouped_as_on_gpu() -> Iterator[None]:
    """Group clips as a GPU would, whatever the device: for counting the memory of one."""
    token = _as_on_gpu.set(True)
    try:
        yield
    finally:
        _as_on_gpu.reset(token)


def pays(clips: int, values: int) -> bool:
    """Return whether recomputing saves memory: `values` are numbers of a clip's graph."""
    return clips >= FEWEST and clips * values >= GROUP_VALUES


def kept_values() -> int:
    """Return the limit below which numbers are kept rather than recomputed, at this place."""
    return INSIDE_VALUES if _in_group.get() else KEPT_VALUES


def recomputed(
    stage: Callable[..., Result], *inputs: object, small: bool = False, random: bool = False
) -> Result:
    """Run a stage whose activations are recomputed in the backward pass.

    Small ones are kept: recomputing them would save too little memory for its time.

    Args:
        stage: A function of tensors.
        inputs: What it is given.
        small: Keep its activations.
        random: It draws random numbers, which must be the same the second time.
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
    allows, and at most a quarter of the batch; at least one.

    Args:
        stage: A function from (B, N, D) to results of as many clips.
        tokens_BND: What it is given.
        values: Numbers in a clip's graph.
        small: As in `recomputed`: all clips at once, and everything is kept.
        random: As in `recomputed`.
    """
    if not torch.is_grad_enabled() or small:
        return stage(tokens_BND)

    def in_group(group_BND: Tensor) -> tuple[Tensor, ...]:
        token = _in_group.set(True)
        try:
            return stage(group_BND)
        finally:
            _in_group.reset(token)

    on_gpu = tokens_BND.device.type in ("cuda", "mps") or _as_on_gpu.get()
    fitting = (BUSY_VALUES if on_gpu else GROUP_VALUES) // values
    clips = max(1, min(fitting, len(tokens_BND) // FEWEST))
    results = [recomputed(in_group, group, random=random) for group in tokens_BND.split(clips)]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
