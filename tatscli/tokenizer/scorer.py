"""How salient a code is, and which codes are kept (LVMAE, Gundavarapu et al. 2024, arXiv
2411.13683, section on the adaptive tokenizer).

Shapes: B batch, C colours, T frames, t, h and w codes, D width of the scorer, N codes of a clip, S
samples.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.engine.device import full_precision
from tatscli.tokenizer.quantize import straight_through

_LEAST_DEVIATION = 1e-6  # of the scores of a clip, which are divided by it


class Scorer(nn.Module):
    """Two strided convolutions to one vector a code; its score is how far that is from the vector
    of the same place one slice before.

    The kernels overlap within a slice and never in time, so that the windows of a long video do
    not show in its scores: what does not move scores 0, at the seams as well. Kernel sizes and
    width are ours.

    Args:
        width: Values D of a vector.
        stride: Pixels along the side of a code, a power of two.
        tubelet: Frames of a code.
    """

    keeps_float32 = True

    def __init__(self, width: int, *, stride: int, tubelet: int) -> None:
        super().__init__()
        first = 2 ** (stride.bit_length() // 2)
        self.first = _strided(3, width, tubelet, first)
        # All its vectors have in common would drop out of their differences.
        self.second = _strided(width, width, 1, stride // first, bias=False)

    def forward(
        self, frames_BCTHW: Tensor, before_BDhw: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score frames in [0, 1].

        Args:
            frames_BCTHW: The frames.
            before_BDhw: Vectors of the slice before them, where there is one. Without, the first
                slice has the scores of the second (EVEREST's rule, modeling_pretrain.py).

        Returns:
            Scores (B, t, h, w), float32, and the vectors of the last slice.
        """
        with full_precision(frames_BCTHW.device):  # scores are differences of likes
            vectors_BDthw = self.second(F.silu(self.first(2 * frames_BCTHW.float() - 1)))
            if before_BDhw is not None:
                vectors_BDthw = torch.cat([before_BDhw[:, :, None], vectors_BDthw], dim=2)
            moves_BDthw = vectors_BDthw[:, :, 1:] - vectors_BDthw[:, :, :-1]
            scores_Bthw = torch.linalg.vector_norm(moves_BDthw, dim=1)
            if before_BDhw is None:
                first_B1hw = (
                    scores_Bthw[:, :1]
                    if scores_Bthw.shape[1]
                    else torch.zeros_like(vectors_BDthw[:, 0, :1])
                )
                scores_Bthw = torch.cat([first_B1hw, scores_Bthw], dim=1)
            return scores_Bthw, vectors_BDthw[:, :, -1]


def _strided(given: int, out: int, frames: int, stride: int, *, bias: bool = True) -> nn.Conv3d:
    side = 2 * stride - 1
    return nn.Conv3d(
        given,
        out,
        (frames, side, side),
        stride=(frames, stride, stride),
        padding=(0, stride - 1, stride - 1),
        bias=bias,
    )


def highest(scores_BN: Tensor, keep: int) -> Tensor:
    """Return 1 for the `keep` highest scores of each clip, earlier ones first among equals, and 0
    for the others: (B, N)."""
    order_BN = scores_BN.argsort(dim=1, descending=True, stable=True)
    kept_BN = torch.zeros_like(scores_BN)
    return kept_BN.scatter(1, order_BN[:, :keep], 1.0)


def standardized(scores_BN: Tensor) -> Tensor:
    """Bring the scores of each clip to mean 0 and deviation 1."""
    deviation_B1 = scores_BN.std(dim=1, correction=0, keepdim=True).clamp(min=_LEAST_DEVIATION)
    return (scores_BN - scores_BN.mean(dim=1, keepdim=True)) / deviation_B1


def highest_by_sigmoid(scores_BN: Tensor, keep: int, softness: float) -> Tensor:
    """Return `highest`, with the gradient of sigmoid((s - tau) / softness): s standardised, tau
    half-way between the last score kept and the first left out.

    Which differentiable top-k LVMAE takes is not known.
    """
    scaled_BN = standardized(scores_BN)
    ranked_BN = scaled_BN.detach().sort(dim=1, descending=True).values
    tau_B1 = ranked_BN[:, keep - 1 : keep + 1].mean(dim=1, keepdim=True)
    soft_BN = ((scaled_BN - tau_B1) / softness).sigmoid()
    return straight_through(soft_BN, highest(scores_BN, keep))


def perturbed(scores_BN: Tensor, keep: int, softness: float, samples: int) -> Tensor:
    """Return how often each score is among the `keep` highest when noise of deviation `softness` is
    added to the standardised scores (Berthet et al. 2020, arXiv 2002.08676; Cordonnier et al. 2021,
    arXiv 2104.03059), with the gradient of that expectation: (B, N), in [0, 1]."""
    mean_BN: Tensor = _Perturbed.apply(standardized(scores_BN), keep, softness, samples)
    return mean_BN


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores_BN: Tensor, keep: int, softness: float, samples: int) -> Tensor:
        noise_SBN = torch.randn(samples, *scores_BN.shape, device=scores_BN.device)
        noisy_XN = (scores_BN + softness * noise_SBN).flatten(0, 1)
        kept_SBN = highest(noisy_XN, keep).unflatten(0, (samples, -1))
        ctx.save_for_backward(noise_SBN, kept_SBN)
        ctx.softness = softness
        return kept_SBN.mean(dim=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        noise_SBN, kept_SBN = ctx.saved_tensors
        # d/ds E[kept] = E[kept noise^T] / softness, of normal noise.
        agreed_SB1 = (kept_SBN * grads[0]).sum(dim=2, keepdim=True)
        return (agreed_SB1 * noise_SBN).mean(dim=0) / ctx.softness, None, None, None
