"""The exponential moving average (EMA) of a network in training: `Averaged` holds it, `Following`
updates it after every step and saves it."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tatscli.engine import distributed
from tatscli.engine.part import Lesson, Part, Weights, load_weights

Network = TypeVar("Network", bound=nn.Module)


class Averaged(nn.Module, Generic[Network]):
    """The moving average of a network, always in evaluation mode.

    Args:
        network: What is copied. Its parameters are averaged; its buffers, constants and the running
            numbers of a BatchNorm, are taken over as they are.

    Attributes:
        network: The average, without gradient.
        followed: What it is an average of, in a tuple.
    """

    network: Network

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.followed = (network,)  # in a tuple, where torch looks for no submodule
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Averaged[Network]:
        """Stay in evaluation mode: an average uses no dropout."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, momentum: float) -> None:
        """Set every weight to momentum x itself + (1 - momentum) x the network's, and take over its
        buffers."""
        own, others = (
            [distributed.share(one) for one in module.parameters()]
            for module in (self.network, network)
        )
        get_ema_multi_avg_fn(momentum)(own, others, None)
        for buffer, new in zip(self.network.buffers(), network.buffers(), strict=True):
            buffer.copy_(new)


class Following(Generic[Network]):
    """The moving average of a training's model as a part: it is saved, and follows every step.

    A checkpoint's `model` is the average, which is what others take; the weights that the optimiser
    moves are stored beside it as `trained`, for resuming.

    Args:
        network: What it begins as, and follows.
        momentum: Share of itself that a step leaves.

    Attributes:
        average: The average, whose `network` is asked.
    """

    def __init__(self, network: Network, momentum: float) -> None:
        self.average = Averaged(network)
        self.network = network
        self.momentum = momentum

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint keeps of both, by file."""
        return {"model": self, "trained": Weights(self.network)}

    def tensors(self) -> dict[str, Tensor]:
        """Return the averaged weights."""
        return dict(self.average.network.state_dict())

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        load_weights(self.average.network, tensors)

    def after_step(self, done: int, total: int) -> Lesson:
        """Follow by a step; at first faster, or short trainings would keep their first weights
        (min(m, (1 + n) / (10 + n)), as in TensorFlow's and timm's averages)."""
        self.average.follow(self.network, min(self.momentum, (1 + done) / (10 + done)))
        return Lesson()


def copies_in(*modules: nn.Module | None) -> list[tuple[nn.Module, nn.Module]]:
    """Return the averages inside of modules, each with what it follows."""
    return [
        (one.network, one.followed[0])
        for module in modules
        if module is not None
        for one in module.modules()
        if isinstance(one, Averaged)
    ]


def ramped(start: float, end: float, share: float, *, cosine: bool) -> float:
    """Interpolate from `start` to `end`, linearly or along half a cosine.

    Args:
        start: At share 0.
        end: At share 1.
        share: From 0 to 1.
        cosine: Change slowly at both ends.
    """
    if cosine:
        share = 0.5 - 0.5 * math.cos(math.pi * share)
    return start + (end - start) * share
