"""Effective rank of features, a measure of quality that needs no label.

Shapes: Q features, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7  # RankMe's, against the logarithm of 0


def effective_rank(features_QD: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1).

    That is exp of the entropy of the singular values as shares of their sum: 1 where all features
    lie on a line, at most min(Q, D). So only those of equally many features compare. It is NaN
    where a feature is not finite.
    """
    if not features_QD.isfinite().all():
        return math.nan
    value_K = torch.linalg.svdvals(features_QD.double())
    share_K = value_K / value_K.sum().clamp(min=1e-300) + EPS
    return float((-share_K * share_K.log()).sum().exp())
