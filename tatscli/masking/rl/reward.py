"""Running level and spread of the sampler's rewards: the critic predicts a standardised number.

Reconstruction errors of clips differ by a few percent around a level that falls as the autoencoder
learns. A critic of raw errors needs hundreds of updates to learn that level, and until then
its error is in every advantage. This is the output normalisation of PopArt (van Hasselt et al.
2016, arXiv 1602.07714) without its weight correction: both numbers drift slowly, and the critic
follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.engine import distributed

RATE = 0.05  # of a new batch in the running moments
FLOOR = 1e-4  # least spread, relative to the level, for equal clips


class RunningReward(nn.Module):
    """Moments of the clips' mean errors over the last steps; saved with the masker.

    They are those of earlier steps, so that it does not matter how the clips of a step are
    split into processes and micro-batches. In the first step, the rewards are their own level.
    """

    first: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(()))
        self.register_buffer("variance", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def update(self, reward_B: Tensor) -> None:
        """Take the rewards of a step, the same on every process, if finite; early steps count as
        in a plain average."""
        first = distributed.mean(reward_B.mean())
        variance = distributed.mean((reward_B - first).square().mean())
        finite = first.isfinite() & variance.isfinite()
        self.batches += finite
        # Before the first finite batch, any rate will do.
        rate = finite / self.batches.clamp(min=1, max=1 / RATE)
        # Of the mixture of both. A mean of squares less a squared mean would be rounding: clips
        # differ by a few percent of the level.
        away = torch.where(finite, first - self.first, 0.0)
        spread = torch.where(finite, variance, self.variance)
        self.variance.lerp_(spread, rate).add_(rate * (1 - rate) * away.square())
        self.first.add_(rate * away)

    @property
    def known(self) -> Tensor:
        """Whether there was a step: boolean scalar."""
        return self.batches > 0

    @property
    def spread(self) -> Tensor:
        """The deviation between clips."""
        least = FLOOR * self.first.abs() + 1e-12
        return torch.maximum(self.variance.sqrt(), least)

    def in_spreads(self, difference_B: Tensor) -> Tensor:
        """Return differences of rewards in units of spread; 0 while there is none."""
        return torch.where(self.known, difference_B / self.spread, 0.0)

    def standardise(self, reward_B: Tensor) -> Tensor:
        """Return rewards in units of spread around the level."""
        return self.in_spreads(reward_B - self.first)

    def restore(self, value_B: Tensor, unknown_B: Tensor) -> Tensor:
        """Return what the critic says as an error, or `unknown_B` while there is no level."""
        return torch.where(self.known, self.first + self.spread * value_B, unknown_B)


def with_variance(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a masker's weights with the variance of rewards where an older version kept their mean
    square."""
    found = dict(weights)
    for name in weights:
        if name.endswith("reward.second"):
            stem = name.removesuffix("second")
            level = weights[f"{stem}first"]
            found[f"{stem}variance"] = (found.pop(name) - level.square()).clamp(min=0)
    return found
