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
    """Moments of the clips' mean errors over the last steps; saved with the masker.

    Whoever asks gets those of the steps before, so that it does not matter how the clips of a step
    are dealt out to processes and micro-batches. In the first step, rewards count as the level.
    """

    first: Tensor
    second: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(()))
        self.register_buffer("second", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def update(self, first: Tensor, second: Tensor) -> None:
        """Take a step's mean and mean square, if finite; the early ones weigh as in a plain
        average."""
        finite = first.isfinite() & second.isfinite()
        self.batches += finite
        # Where nothing was taken yet, any rate will do.
        rate = finite / self.batches.clamp(min=1, max=1 / RATE)
        for moment, value in ((self.first, first), (self.second, second)):
            moment.lerp_(torch.where(finite, value, moment), rate)

    @property
    def known(self) -> Tensor:
        """Whether there was a step: boolean scalar."""
        return self.batches > 0

    @property
    def spread(self) -> Tensor:
        """The deviation between clips."""
        variance = self.second - self.first.square()
        least = FLOOR * self.first.abs() + 1e-12
        return torch.maximum(variance.clamp(min=0).sqrt(), least)

    def in_spreads(self, difference_B: Tensor) -> Tensor:
        """Return differences of rewards in units of spread; 0 while there is none."""
        return torch.where(self.known, difference_B / self.spread, 0.0)

    def standardise(self, reward_B: Tensor) -> Tensor:
        """Return rewards in units of spread around the level."""
        return self.in_spreads(reward_B - self.first)

    def restore(self, value_B: Tensor, unknown_B: Tensor) -> Tensor:
        """Return what the critic says as an error, or `unknown_B` while there is no level."""
        return torch.where(self.known, self.first + self.spread * value_B, unknown_B)
