"""Running level and spread of the sampler's rewards: the critic foretells a standardised number.

Reconstruction errors of clips differ by a few percent around a level that falls as the autoencoder
learns. A critic of raw errors spends its first hundreds of updates on finding that level, while
every advantage carries its mistake. This is the output normalisation of PopArt (van Hasselt et al.
2016, arXiv 1602.07714) without its weight correction: both numbers drift slowly, and the critic
follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

RATE = 0.05  # of a new batch in the running moments
FLOOR = 1e-4  # least spread, relative to the level: clips that are all alike


class RunningReward(nn.Module):
    """Moments of the clips' mean errors over the last batches; saved with the masker."""

    first: Tensor
    second: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(()))
        self.register_buffer("second", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def update(self, first: Tensor, second: Tensor) -> None:
        """Take a batch's mean and mean square, if finite; the early ones weigh as in a plain
        average."""
        finite = first.isfinite() & second.isfinite()
        self.batches += finite
        # Where nothing was taken yet, any rate will do.
        rate = finite / self.batches.clamp(min=1, max=1 / RATE)
        for moment, value in ((self.first, first), (self.second, second)):
            moment.lerp_(torch.where(finite, value, moment), rate)

    @property
    def spread(self) -> Tensor:
        """The deviation between clips."""
        variance = self.second - self.first.square()
        least = FLOOR * self.first.abs() + 1e-12
        return torch.maximum(variance.clamp(min=0).sqrt(), least)

    def standardise(self, reward_B: Tensor) -> Tensor:
        """Return rewards in units of spread around the level."""
        return (reward_B - self.first) / self.spread

    def restore(self, value_B: Tensor) -> Tensor:
        """Return what the critic says as an error."""
        return self.first + self.spread * value_B
