"""What targets made of a network's features share: their scale, and the error of guessing them.

Shapes: B batch, M predicted, D width of the features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def standardised(features_BMD: Tensor) -> Tensor:
    """Give each token mean 0 and deviation 1 over its features: a LayerNorm without weights.

    So all targets have one scale, whatever the network's final norm has learned. float32.
    """
    features_BMD = features_BMD.float()
    return F.layer_norm(features_BMD, features_BMD.shape[-1:])


def smooth_l1_BM(prediction_BMD: Tensor, values_BMD: Tensor, beta: float) -> Tensor:
    """Return the mean smooth L1 distance of each token: (B, M), float32.

    Differences d below `beta` count as d^2 / (2 beta), others as |d| - beta / 2; 0 is plain L1.
    """
    error = F.smooth_l1_loss(
        prediction_BMD.float(), values_BMD.float(), beta=beta, reduction="none"
    )
    return error.mean(dim=-1)
