"""Quality of reconstructions, and use of a codebook.

Shapes: X pictures, C colours, H and W pixels, K codes, ... any.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TAPS, _SIGMA = 11, 1.5  # SSIM's window
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pictures_XCHW: Tensor, true_XCHW: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in [0, 1], in dB: (X)."""
    error_X = (pictures_XCHW.float() - true_XCHW.float()).square().flatten(1).mean(dim=1)
    return -10 * error_X.clamp(min=1e-10).log10()


def ssim(pictures_XCHW: Tensor, true_XCHW: Tensor) -> Tensor:
    """Return the structural similarity of each picture in [0, 1] to the true one: (X).

    As published (Wang et al. 2004): a Gaussian window of 11 x 11 with standard deviation 1.5,
    without padding, averaged over positions and colours. Smaller pictures have a smaller window.
    """
    side = min(_TAPS, *pictures_XCHW.shape[-2:])
    taps = [math.exp(-0.5 * ((at - (side - 1) / 2) / _SIGMA) ** 2) for at in range(side)]
    weights = [tap / sum(taps) for tap in taps]

    def blurred(values_XCHW: Tensor) -> Tensor:
        # Sums instead of convolutions, which autocast and TF32 would round: variances are small
        # differences of these.
        for dim in (2, 3):
            size = values_XCHW.shape[dim] - side + 1
            summed = values_XCHW.narrow(dim, 0, size) * weights[0]
            for at, weight in enumerate(weights[1:], start=1):
                summed = summed.add_(values_XCHW.narrow(dim, at, size), alpha=weight)
            values_XCHW = summed
        return values_XCHW

    one, two = pictures_XCHW.float(), true_XCHW.float()
    mean_1, mean_2 = blurred(one), blurred(two)
    var_1 = blurred(one.square()) - mean_1.square()
    var_2 = blurred(two.square()) - mean_2.square()
    both = blurred(one * two) - mean_1 * mean_2
    likeness = (2 * mean_1 * mean_2 + _C1) * (2 * both + _C2)
    likeness = likeness / ((mean_1.square() + mean_2.square() + _C1) * (var_1 + var_2 + _C2))
    return likeness.flatten(1).mean(dim=1)


def code_counts(codes: Tensor, size: int, counted: Tensor | None = None) -> Tensor:
    """Count the uses of each code at places where `counted` is not 0: float32 (K)."""
    once = torch.ones_like(codes, dtype=torch.float32) if counted is None else (counted > 0).float()
    count_K = torch.zeros(size, device=codes.device)
    return count_K.scatter_add_(0, codes.flatten(), once.flatten())


def code_use(count_K: Tensor) -> Tensor:
    """Return the share of codes that are used, of those that could be: at most as many as were
    counted."""
    most = count_K.sum().clamp(max=count_K.numel())
    return (count_K > 0).sum() / most


def perplexity(count_K: Tensor) -> Tensor:
    """Return the perplexity of the codes: exp of the entropy of their use."""
    share_K = count_K / count_K.sum()
    return (-torch.special.xlogy(share_K, share_K).sum()).exp()
