"""Running level and spread of the sampler's rewards, and the typical error of a token's position.

The critic predicts a standardised number. Reconstruction errors of clips differ by a few percent
around a level that falls as the autoencoder learns. A critic of raw errors needs hundreds of
updates to learn that level, and until then its error is in every advantage. This is the output
normalisation of PopArt (van Hasselt et al. 2016, arXiv 1602.07714) without its weight correction:
both numbers drift slowly, and the critic follows.

Shapes: B batch, N tokens, M predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.engine import distributed

RATE = 0.05  # of a new batch in the running moments
FLOOR = 1e-4  # least spread, relative to the level, for equal clips
LEAST = 1e-2  # least typical error, relative to the mean over positions, for black borders


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


class TypicalError(nn.Module):
    """Mean error of each position of a clip over the clips of the last steps; saved with the
    masker.

    What is hard in every clip, such as a textured background, has a high one; errors in units of it
    are high where a clip differs from the others.
    """

    mean_N: Tensor
    steps_N: Tensor

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.register_buffer("mean_N", torch.zeros(tokens))
        self.register_buffer("steps_N", torch.zeros(tokens))
        self._heard: list[Tensor] = []

    def relative(self, error_BM: Tensor, predict_BM: Tensor) -> Tensor:
        """Return errors in units of the typical one of their positions: (B, M).

        Positions that were never predicted count as typical as the batch's mean. The errors are
        kept for `update`.
        """
        finite_BM = error_BM.isfinite()
        heard_2BM = torch.stack([error_BM.where(finite_BM, 0.0), finite_BM.float()])
        # No token is predicted twice in a clip, so that a GPU too gives the same sums every time.
        heard_2BN = error_BM.new_zeros(2, len(error_BM), len(self.mean_N))
        heard_2BN.scatter_(2, predict_BM.expand(2, -1, -1), heard_2BM)
        self._heard.append(heard_2BN.sum(dim=1))
        least = LEAST * self.mean_N.mean() + torch.finfo(torch.float32).tiny
        typical_N = self.mean_N.clamp(min=least).where(self.steps_N > 0, error_BM.mean())
        return error_BM / typical_N[predict_BM]

    def update(self) -> None:
        """Take the errors of a step, the same on every process, as far as they are finite."""
        sum_N, count_N = distributed.mean(torch.stack(self._heard).sum(dim=0))
        self._heard.clear()
        seen_N = count_N > 0
        self.steps_N += seen_N
        rate_N = seen_N / self.steps_N.clamp(min=1, max=1 / RATE)
        self.mean_N.lerp_((sum_N / count_N).where(seen_N, self.mean_N), rate_N)


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
