"""Effective rank of features, a quality measure that needs no labels.

Shapes: Q features, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-7  # RankMe's, against the logarithm of 0


def effective_rank(features_QD: Tensor) -> float:
    """Return RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1).

    This is exp of the entropy of the normalised singular values: 1 if all features lie on a line,
    at most min(Q, D). So compare only values of equally many features. It is NaN if a feature is
    not finite.
    """
    if not features_QD.isfinite().all():
        return math.nan
    value_K = torch.linalg.svdvals(features_QD.double())
    share_K = value_K / value_K.sum().clamp(min=1e-300) + EPS
    return float((-share_K * share_K.log()).sum().exp())
