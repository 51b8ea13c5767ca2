"""`Averaged`: the exponential moving average of a network that is trained, such as a teacher."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


class Averaged(nn.Module, Generic[Network]):
    """A copy of a network that follows its weights slowly, always in evaluation mode.

    Args:
        network: What is copied; only its parameters are averaged, for its buffers are constants.

    Attributes:
        network: The average, without gradient.
    """

    network: Network

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Averaged[Network]:
        """Stay in evaluation mode: an average has no dropout, whatever its owner does."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """Set every weight to momentum x itself + (1 - momentum) x the network's."""
        own, others = list(self.network.parameters()), list(network.parameters())
        get_ema_multi_avg_fn(momentum)(own, others, None)


def ramped(start: float, end: float, share: float, *, cosine: bool) -> float:
    """Return a number on its way from `start` to `end`, linearly or along half a cosine.

    Args:
        start: At share 0.
        end: At share 1.
        share: How much of the way is done.
        cosine: Leave and arrive slowly.
    """
    if cosine:
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return start + (end - start) * share
