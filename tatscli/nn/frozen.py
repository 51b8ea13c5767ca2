"""`Frozen`: a network that is asked and never trained, such as a teacher or a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from tatscli.engine.device import full_precision


class Frozen(nn.Module):
    """Keeps a network in evaluation mode, without gradient, in its own precision.

    It moves with the module it belongs to and has no part in anything else: neither parameters nor
    weights in a checkpoint, which keeps `facts` instead.

    Args:
        network: What is asked.
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
        """What a checkpoint keeps of it."""
        return {"path": self.path, "sha256": self.digest}

    @torch.no_grad()
    def forward(self, tensor: Tensor, *others: Any) -> Any:
        """Ask the network; the autocast of the training around it does not reach in.

        What comes from inside of it in half precision is brought to the network's own first.
        """
        weight = next(self._network[0].parameters(), None)
        if weight is not None and tensor.is_floating_point():
            tensor = tensor.to(weight.dtype)
        with full_precision(tensor.device):
            return self._network[0](tensor, *others)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._network[0]._apply(fn)
        return super()._apply(fn, recurse)
