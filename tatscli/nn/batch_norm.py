"""Batch normalisation without weights, over the batches of all processes.

Shapes: B batch of a process, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.engine import distributed

EPS = 1e-6  # MAE's probe (facebookresearch/mae, main_linprobe.py); torch's own default is 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """What `torch.nn.BatchNorm1d(width, affine=False, eps=1e-6)` computes, and two things more.

    In training, mean and variance are those of the micro-batches of all processes together, on any
    device (torch's `SyncBatchNorm` needs a GPU), so that the running ones are the same everywhere.
    And what is not finite does not enter the running ones: a step that is left out leaves no trace.
    """

    running_mean_D: Tensor
    running_var_D: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean_D", torch.zeros(width))
        self.register_buffer("running_var_D", torch.ones(width))

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return the normalised features, float32: (B, D)."""
        features_BD = features_BD.float()
        if not self.training:
            return (features_BD - self.running_mean_D) * (self.running_var_D + EPS).rsqrt()
        # First the mean, then the spread about it: where all clips look alike, the difference of
        # two means of squares would be rounding.
        mean_D = distributed.mean_with_gradient(features_BD.mean(dim=0))
        centred_BD = features_BD - mean_D
        var_D = distributed.mean_with_gradient(centred_BD.square().mean(dim=0))
        self._remember(mean_D.detach(), var_D.detach(), len(features_BD) * distributed.size())
        return centred_BD * (var_D + EPS).rsqrt()

    @torch.no_grad()
    def _remember(self, mean_D: Tensor, var_D: Tensor, count: int) -> None:
        unbiased_D = var_D * (count / max(1, count - 1))
        sound = mean_D.isfinite().all() & var_D.isfinite().all()
        for running_D, new_D in (
            (self.running_mean_D, mean_D),
            (self.running_var_D, unbiased_D),
        ):
            running_D.copy_(torch.where(sound, running_D.lerp(new_D, MOMENTUM), running_D))
