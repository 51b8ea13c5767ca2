"""A GPU that is not there: shapes, types and devices of a training step without one.

Tensors live in torch's `FakeTensorMode` on a pretend `cuda:0`. Mixing devices is an error there,
and so is whatever must know a value (`item`, `nonzero`, a boolean index). Copies that make the host
wait are found here. Torch's own backward pass asks for a real CUDA context, so the graph is walked
in Python, node by node.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")


class NoWaits(TorchDispatchMode):
    """Refuses copies between host and device that are not asynchronous."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "exponential_":
            kwargs.pop("generator", None)  # torch knows its shape only without
        result = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            if source.device != result.device and (result.device.type == "cpu" or not asynchronous):
                raise AssertionError(f"{name} from {source.device} to {result.device} waits")
        return result


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let tensors be made and computed with on a pretend GPU."""
    monkeypatch.setattr(Tensor, "backward", walk_back)
    # Without a real one, torch would leave autocast off.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    # Without the number of a backward pass a checkpoint computes all again for each of its tensors.
    monkeypatch.setattr(torch._C, "_current_graph_task_id", lambda: 1)
    with FakeTensorMode():
        yield


def walk_back(loss: Tensor, gradient: Tensor | None = None) -> None:
    """Run the backward pass of a scalar: every node once, after all that use its result."""
    root = loss.grad_fn
    assert root is not None
    order = _order(root)
    arrived: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    for node in order:
        given = arrived.pop(node, {})
        if hasattr(node, "variable"):
            variable = node.variable
            gradient = given[0]
            for hook in (variable._backward_hooks or {}).values():
                gradient = hook(gradient)
            assert (gradient.shape, gradient.device) == (variable.shape, variable.device)
            variable.grad = gradient if variable.grad is None else variable.grad + gradient
            continue
        run = node if callable(node) else node.apply  # a function of our own is not callable
        results = run(*(given.get(place) for place in range(len(node._input_metadata))))
        results = results if isinstance(results, tuple) else (results,)
        if not callable(node):  # it has gradients, None, for arguments that are no tensors as well
            results = results[: len(node.next_functions)]
        for (below, place), result in zip(node.next_functions, results, strict=True):
            if below is not None and result is not None:
                # The engine adds up what was broadcast, and brings gradients to the input's type.
                meant = below._input_metadata[place]
                assert result.device == meant.device
                result = result.sum_to_size(meant.shape).to(meant.dtype)
                slot = arrived.setdefault(below, {})
                slot[place] = slot[place] + result if place in slot else result


def _order(root: Any) -> list[Any]:
    """Sort the nodes below a root so that each comes after all that lead to it."""
    uses: dict[Any, int] = {root: 0}
    found = deque([root])
    while found:
        for below, _ in found.popleft().next_functions:
            if below is not None:
                if below not in uses:
                    found.append(below)
                uses[below] = uses.get(below, 0) + 1
    ready, order = deque([root]), []
    while ready:
        node = ready.popleft()
        order.append(node)
        for below, _ in node.next_functions:
            if below is not None:
                uses[below] -= 1
                if not uses[below]:
                    ready.append(below)
    return order


def to_gpu(*modules: nn.Module) -> None:
    """Replace what is in modules by tensors of the same shapes on the pretend GPU."""
    for part in (part for module in modules for part in module.modules()):
        for name, one in part._parameters.items():
            if one is not None:
                fresh = torch.empty(one.shape, dtype=one.dtype, device=GPU)
                part._parameters[name] = nn.Parameter(fresh, requires_grad=one.requires_grad)
        for name, one in part._buffers.items():
            if one is not None:
                part._buffers[name] = torch.empty(one.shape, dtype=one.dtype, device=GPU)
