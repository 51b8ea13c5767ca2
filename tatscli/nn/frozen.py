"""`Frozen`: a network that is used but never trained, such as a teacher or a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from tatscli.engine.device import full_precision


class Frozen(nn.Module):
    """Keeps a network in evaluation mode, without gradient, in its own precision.

    It moves between devices with its owner and is otherwise left out: it adds no parameters, and a
    checkpoint stores its `facts` instead of its weights.

    Args:
        network: The network.
        path: Where its weights were read from.
        digest: SHA-256 of those.
    """

    def __init__(self, network: nn.Module, *, path: str, digest: str) -> None:
        super().__init__()
        # In a tuple, where torch does not look for submodules.
        self._network = (network.eval().requires_grad_(False),)
        self.path = path
        self.digest = digest

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint stores of it."""
        return {"path": self.path, "sha256": self.digest}

    @torch.no_grad()
    def forward(self, tensor: Tensor, *others: Any) -> Any:
        """Run the network without the autocast of the training around it.

        Half-precision inputs are first converted to the network's own precision.
        """
        weight = next(self._network[0].parameters(), None)
        if weight is not None and tensor.is_floating_point():
            tensor = tensor.to(weight.dtype)
        with full_precision(tensor.device):
            return self._network[0](tensor, *others)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._network[0]._apply(fn)
        return super()._apply(fn, recurse)
