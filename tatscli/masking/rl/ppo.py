"""The sampler's objective as pure functions: one mask is one action, one clip a one-step episode.

Credit goes to hidden tokens: one that proved hard to predict gets a larger probability to be
visible next time (the reading of AdaMAE, arXiv 2211.09120). Probability ratios are taken and
clipped per token (PPO, arXiv 1707.06347); a ratio over a whole draw of hundreds of tokens would
leave the clip range at once. All of it runs in float32.

Shapes: B batch, N tokens, M predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
LIMIT = 10.0  # a clip that is black or flat has no spread, and would speak for the whole batch


def advantages(reward_BM: Tensor, baseline_B: Tensor) -> Tensor:
    """Return (reward - baseline) / deviation of the clip's rewards: (B, M), without gradient.

    Rewards drift as the autoencoder learns; dividing by their spread within the clip keeps the
    scale, and with it the meaning of the entropy weight. The baseline is one number a clip: a
    baseline per token would cancel the signal. Advantages stay within `LIMIT`.
    """
    spread_B1 = reward_BM.std(dim=1, correction=0, keepdim=True)
    return bounded((reward_BM - baseline_B[:, None]) / (spread_B1 + EPS))


def bounded(advantage: Tensor) -> Tensor:
    """Return advantages within `LIMIT`, without gradient."""
    return advantage.clamp(-LIMIT, LIMIT).detach()


def clipped_surrogate(ratio_BM: Tensor, advantage_BM: Tensor, clip: float) -> Tensor:
    """Return the policy loss: minus the mean of min(r A, clip(r, 1 - clip, 1 + clip) A)."""
    bounded_BM = ratio_BM.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio_BM * advantage_BM, bounded_BM * advantage_BM).mean()


def clip_fraction(ratio_BM: Tensor, clip: float) -> Tensor:
    """Return the share of ratios outside the clip range, a scalar."""
    return ((ratio_BM - 1).abs() > clip).float().mean()


def entropy(log_p_BN: Tensor) -> Tensor:
    """Return the policy's entropy in nats: (B,)."""
    return -(log_p_BN.exp() * log_p_BN).sum(dim=1)


def kl_divergence(old_log_p_BN: Tensor, new_log_p_BN: Tensor) -> Tensor:
    """Return KL(old || new) in nats: (B,)."""
    return (old_log_p_BN.exp() * (old_log_p_BN - new_log_p_BN)).sum(dim=1)


def explained_variance(value_B: Tensor, reward_B: Tensor) -> Tensor:
    """Return 1 - var(reward - value) / var(reward) over the batch; 0 where nothing varies."""
    spread = reward_B.var(correction=0)
    left = (reward_B - value_B).var(correction=0)
    return torch.where(spread > 0, 1 - left / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0)
