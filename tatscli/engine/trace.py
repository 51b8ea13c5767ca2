"""`Trace`: records the outputs of every module on a batch, and their gradients, to find where they
become non-finite. Reading them synchronises with the device, so this is for a single batch.

Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor that was seen.

    Attributes:
        module: Whose output it is, or the gradient of.
        kind: The module's class.
        shape: Of the tensor.
        bad_B: Share of values of each sample that are not finite; one number for all where it is
            not known which are whose.
        largest_B: Largest finite magnitude of each sample, likewise.
    """

    module: str
    kind: str
    shape: tuple[int, ...]
    bad_B: list[float]
    largest_B: list[float]

    @property
    def bad(self) -> float:
        """Share of values that are not finite."""
        return sum(self.bad_B) / len(self.bad_B)

    @property
    def largest(self) -> float:
        """Largest finite magnitude."""
        return max(self.largest_B)

    def of(self, sample: int) -> tuple[float, float]:
        """Return `bad` and `largest` of one sample."""
        place = sample if len(self.bad_B) > 1 else 0
        return self.bad_B[place], self.largest_B[place]


class Trace:
    """Records module outputs while a batch runs through them.

    A module is recorded after its submodules, so that the first bad output is that of the innermost
    module. Gradients are recorded in the order of the backward pass: the first bad one was produced
    by whatever follows that module. Recomputation in the backward pass is not recorded.

    Args:
        samples: B; tensors whose first dimension is a multiple of it are told apart by sample.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.outputs: list[Seen] = []
        self.gradients: list[Seen] = []
        self._forward = False

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Watch the forward pass of modules, and of all inside them, in this block; gradients that
        come back later are seen too.

        Args:
            modules: By name, which their parts' names begin with.
        """
        handles = []
        known = set[nn.Module]()
        for prefix, root in modules.items():
            for name, module in root.named_modules(prefix=prefix):
                if module not in known:
                    known.add(module)
                    hook = partial(self._hear, name or type(module).__name__)
                    handles.append(module.register_forward_hook(hook))
        self._forward = True
        try:
            yield
        finally:
            self._forward = False
            for handle in handles:
                handle.remove()

    def _hear(self, name: str, module: nn.Module, given: Any, made: Any) -> None:
        if not self._forward:
            return
        kind = type(module).__name__
        for tensor in tensors_in(made):
            self.outputs.append(self._seen(name, kind, tensor))
            if tensor.requires_grad:
                tensor.register_hook(partial(self._hear_gradient, name, kind))

    def _hear_gradient(self, name: str, kind: str, gradient: Tensor) -> None:
        self.gradients.append(self._seen(name, kind, gradient))

    def _seen(self, name: str, kind: str, tensor: Tensor) -> Seen:
        value = tensor.detach().float()
        apart = value.ndim > 0 and value.shape[0] > 0 and value.shape[0] % self.samples == 0
        flat_BX = value.reshape(self.samples if apart else 1, -1)
        finite_BX = flat_BX.isfinite()
        largest_B = torch.where(finite_BX, flat_BX.abs(), 0.0).amax(dim=1)
        bad_B = (~finite_BX).float().mean(dim=1)
        return Seen(name, kind, tuple(tensor.shape), bad_B.tolist(), largest_B.tolist())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a module returns, empty ones left out."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)


def first_bad(seen: list[Seen]) -> Seen | None:
    """Return the first that is not finite throughout."""
    return next((one for one in seen if one.bad), None)


def worst_of(seen: list[Seen], sample: int) -> Seen | None:
    """Return what one sample is to be judged by: the first bad, or else the largest."""
    bad = next((one for one in seen if one.of(sample)[0]), None)
    return bad or max(seen, key=lambda one: one.of(sample)[1], default=None)
