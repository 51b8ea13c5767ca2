"""How a mask treats motion and time: numbers for any masker, fixed or learned.

Shapes: B batch, N tokens (time-major), K visible, T slices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.masking.plan import MaskPlan

DECILE = 0.1

TOLD_SLICES = 16
"""Clips of more slices do not log every slice: nobody reads so long a line."""


def mask_insight(
    plan: MaskPlan, *, grid: tuple[int, int, int], motion: MotionField | None = None
) -> dict[str, Tensor]:
    """Describe the visible and the hidden tokens of a batch in scalars, without reading them back.

    Args:
        plan: Says which are visible; all others are hidden.
        grid: Tokens along time, height and width.
        motion: The clips' motion; without it the motion numbers are left out, and where no clip
            moves they are NaN.

    Returns:
        `motion_missing`: share of the clips whose source knew no motion.
        `visible_slice_min` and `visible_slice_max`: visible tokens of the emptiest and fullest
        slice, and `visible_slice_0` ... of each, means over clips; the latter up to 16 slices.
        `motion_share`: share of the visible tokens in the tenth of the clip that moves most; 0.1
        is chance.
        `motion_lift`: mean motion of the visible tokens over that of all tokens; 1 is chance.
        `motion_hidden`: mean motion of the hidden tokens, predicted or not, over that of all; 1 is
        chance.
    """
    slices, sites = grid[0], grid[1] * grid[2]
    counts_BT = visible_per_slice(plan.visible_BK, slices, sites).float()
    numbers = {
        "visible_slice_min": counts_BT.amin(dim=1).mean(),
        "visible_slice_max": counts_BT.amax(dim=1).mean(),
    }
    if slices <= TOLD_SLICES:
        each = counts_BT.mean(dim=0).unbind()
        numbers |= {f"visible_slice_{number}": count for number, count in enumerate(each)}
    if motion is None:
        return numbers
    motion = motion.to(plan.visible_BK.device)
    numbers["motion_missing"] = motion.fallback_B.float().mean()
    magnitude_BN = motion.magnitude_BN(slices)
    total_B = magnitude_BN.sum(dim=1)
    mean_B = total_B / magnitude_BN.shape[1]
    seen_BK = magnitude_BN.gather(1, plan.visible_BK)
    hidden = magnitude_BN.shape[1] - seen_BK.shape[1]
    unseen_B = (total_B - seen_BK.sum(dim=1)) / hidden
    by_clip_3B = torch.stack(
        [
            top_share(magnitude_BN, DECILE).gather(1, plan.visible_BK).mean(dim=1),
            seen_BK.mean(dim=1) / mean_B,
            unseen_B / mean_B,
        ]
    )
    moving_B = (magnitude_BN.amax(dim=1) > 0) & ~motion.missing_B
    sums_3 = torch.where(moving_B, by_clip_3B, 0.0).sum(dim=1)
    names = ("motion_share", "motion_lift", "motion_hidden")
    return numbers | dict(zip(names, (sums_3 / moving_B.sum()).unbind(), strict=True))


def visible_per_slice(visible_BK: Tensor, slices: int, sites: int) -> Tensor:
    """Count the visible tokens of each slice: int64 (B, T)."""
    counts_BT = torch.zeros(
        visible_BK.shape[0], slices, dtype=torch.int64, device=visible_BK.device
    )
    return counts_BT.scatter_add_(1, visible_BK // sites, torch.ones_like(visible_BK))


def top_share(magnitude_BN: Tensor, share: float) -> Tensor:
    """Return how far each token belongs to the top `share` of its clip; rows add up to share x N.

    Tokens that tie at the border divide the places left between them, so that blind choice scores
    exactly `share` also where most tokens stand still.
    """
    places = share * magnitude_BN.shape[1]
    rank = math.ceil(places)
    border_B1 = magnitude_BN.topk(rank, dim=1).values[:, -1:]
    above_BN = magnitude_BN > border_B1
    tied_BN = magnitude_BN == border_B1
    left_B1 = places - above_BN.sum(dim=1, keepdim=True)
    return above_BN + tied_BN * (left_B1 / tied_BN.sum(dim=1, keepdim=True))
