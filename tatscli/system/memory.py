"""What a training step keeps in memory, counted while no number is computed.

Tensors are torch's fake ones, of the CPU: they have shapes, types and storages, but no bytes, and
torch's own autograd and kernels' shape functions say which of them are alive when. Attention takes
torch's flash kernel, as on a GPU, so that no matrix of scores is stored.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of a training step beside weights, gradients and moments, when they are most.

    Attributes:
        activations: What the backward pass waits for, the batch itself, and what is being computed.
        copies: Weights that autocast has rounded, which the backward pass needs as well.
    """

    activations: int
    copies: int


@contextmanager
def pretended(*modules: nn.Module) -> Iterator[None]:
    """Compute with fake tensors; those of the modules, on the meta device so far, become such."""
    with FakeTensorMode():
        fakes: dict[Tensor, Tensor] = {}
        for part in (part for module in modules for part in module.modules()):
            for table in (part._parameters, part._buffers):
                for name, one in table.items():
                    if one is not None and not isinstance(one, FakeTensor):
                        table[name] = fakes.setdefault(one, _fake(one))  # type: ignore[assignment]
        yield


def _fake(one: Tensor) -> Tensor:
    fake = torch.empty(one.shape, dtype=one.dtype)
    return nn.Parameter(fake, one.requires_grad) if isinstance(one, nn.Parameter) else fake


def step_memory(
    work: Callable[[], Tensor], modules: Iterable[nn.Module], *, half: bool
) -> StepMemory:
    """Count the memory of a forward and backward pass, inside of `pretended`.

    Args:
        work: Makes a batch and returns the loss.
        modules: Whose weights are there anyway, and whose gradients are counted elsewhere.
        half: In autocast to 16 bits, else in float32.
    """
    owned = [one for module in modules for one in (*module.parameters(), *module.buffers())]
    counter = _LiveBytes({one.untyped_storage()._cdata for one in owned})
    hooks = [
        one.register_post_accumulate_grad_hook(counter.forget_gradient)
        for one in owned
        if isinstance(one, nn.Parameter) and one.requires_grad
    ]
    # Without its cache, as training does (`engine/device.py`).
    cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext()
    try:
        with counter:
            with cast:
                loss = work()
            loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        for one in owned:
            one.grad = None
    return StepMemory(counter.most - counter.copies_then, counter.copies_then)


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, from their first use to their end.

    Args:
        owned: Storages of the weights, by their address.

    Attributes:
        most: Most bytes that were alive at a time.
        copies_then: Those of them that were rounded weights.
    """

    def __init__(self, owned: set[int]) -> None:
        super().__init__()
        self.owned = owned
        self.sizes: dict[int, int] = {}
        self.copied: set[int] = set()
        self.now = self.copies = 0
        self.most = self.copies_then = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        casts = func.overloadpacket is torch.ops.aten._to_copy
        copies = casts and args[0].untyped_storage()._cdata in self.owned
        for one in tree_flatten(result)[0]:
            if isinstance(one, Tensor):
                self._see(one.untyped_storage(), copies=copies)
        return result

    def _see(self, storage: UntypedStorage, *, copies: bool) -> None:
        key = storage._cdata
        if key in self.owned or key in self.sizes:
            return
        size = storage.nbytes()
        self.sizes[key] = size
        self.now += size
        if copies:
            self.copied.add(key)
            self.copies += size
        weakref.finalize(storage, self._end, key)
        if self.now > self.most:
            self.most, self.copies_then = self.now, self.copies

    def _end(self, key: int) -> None:
        size = self.sizes.pop(key, 0)
        self.now -= size
        if key in self.copied:
            self.copied.discard(key)
            self.copies -= size

    def forget_gradient(self, parameter: Tensor) -> None:
        """Stop counting the gradient of a parameter, which has arrived."""
        if parameter.grad is not None:
            self._end(parameter.grad.untyped_storage()._cdata)
