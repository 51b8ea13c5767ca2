"""Heat maps of what each token scores: probability, saliency, error.

Shapes: T frames, Y and X pixels of a panel, N tokens of a clip, M predicted.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.panels import Row, Scale, dim, hatching, heat_over, spread

_LEAST = 1e-30  # what is divided by, where nothing scores


def lift_of(score_N: Tensor) -> Tensor:
    """Return probabilities as multiples of chance, other values as multiples of their mean.

    Where all are 0 the multiples are 0 too.
    """
    return score_N / score_N.mean().clamp(min=_LEAST)


def bounds_of(value: Tensor) -> tuple[float, float]:
    """Return the ends of a colour scale for positive values.

    It reaches at least 5 % around the mean, so that rounding does not look like structure.
    """
    mean = value.mean().item()
    low, high = min(0.95 * mean, value.min().item()), max(1.05 * mean, value.max().item())
    return low, max(high, low + 1e-9)


def probability_row(
    video_TYX3: np.ndarray,
    score_N: Tensor,
    grid: tuple[int, int, int],
    bounds: tuple[float, float],
) -> Row:
    """Lay the probabilities, as multiples of chance, over a grey picture."""
    notes = ["probability of being drawn first, as a multiple of chance"]
    return _multiples("sampler probability", notes, video_TYX3, score_N, grid, bounds)


def salience_row(
    label: str,
    notes: list[str],
    video_TYX3: np.ndarray,
    score_N: Tensor,
    grid: tuple[int, int, int],
) -> Row:
    """Lay scores, as multiples of their mean, over a grey picture."""
    mean = score_N.mean().item()
    notes = [*notes, f"as a multiple of the mean, here {mean:.3g}"]
    return _multiples(label, notes, video_TYX3, score_N, grid, bounds_of(lift_of(score_N)))


def _multiples(
    label: str,
    notes: list[str],
    video_TYX3: np.ndarray,
    score_N: Tensor,
    grid: tuple[int, int, int],
    bounds: tuple[float, float],
) -> Row:
    low, high = bounds
    share_N = (lift_of(score_N) - low) / (high - low)
    share_TYX = spread(share_N, grid, video_TYX3.shape[:3]).numpy()
    scale = Scale(f"{low:.2f}x", f"{high:.2f}x")
    return Row(label, notes, heat_over(video_TYX3, share_TYX), scale)


def error_row(
    video_TYX3: np.ndarray, plan: MaskPlan, error_M: Tensor, grid: tuple[int, int, int]
) -> Row:
    """Lay the errors of the predicted tokens over a grey picture."""
    shape = video_TYX3.shape[:3]
    low, high = bounds_of(error_M)
    hidden_N = plan.hidden_BN(math.prod(grid))[0].cpu()
    predict_M = plan.predict_BM[0].cpu()
    share_N = torch.full(hidden_N.shape, math.nan)
    share_N[predict_M] = (error_M - low) / (high - low)
    share_TYX = spread(share_N, grid, shape).numpy()
    unseen_TYX1 = spread(hidden_N, grid, shape).numpy()[..., None]
    others = np.where(unseen_TYX1, hatching(video_TYX3), dim(video_TYX3))
    hot = heat_over(video_TYX3, np.nan_to_num(share_TYX))
    panels = np.where(np.isnan(share_TYX)[..., None], others, hot)
    notes = ["error of each predicted token, as the loss counts it; grey is visible"]
    notes.append(f"mean {error_M.mean().item():#.3g}")
    return Row("error", notes, panels, Scale(f"{low:#.3g}", f"{high:#.3g}"))
