"""`motion_bins`: a fixed share of the visible tokens moves (after TrackMAE's two motion bins).

Published: half of the visible tokens come from regions that move much. TrackMAE uses point tracks
of a network, we use the clips' motion field. The rest is ours.

Shapes: B batch, N tokens (time-major), T slices, S sites of a slice, K visible.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.base import Masker
from tatscli.masking.draw import in_tubes_BN, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, known_motion


class MotionBinsMasker(Masker):
    """Shows tokens of the half of the clip that moves more, and of the other half.

    Within a half, tokens are drawn at random. Which half tokens of equal speed belong to is
    decided by site, the same in all slices, so that a still clip is divided into two sets of tubes.
    A clip without motion is masked as a tube as far as the exact count allows. Where a half is too
    small for its share, it is shown whole.
    """

    needs_motion = True

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.visible = visible_count(self.tokens, config.ratio)
        self.upper = self.tokens // 2
        lower = self.tokens - self.upper
        least, most = max(0, self.visible - lower), min(self.upper, self.visible)
        self.moving = min(max(round(self.visible * Fraction(str(config.share))), least), most)

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Divide each clip by speed and draw from both halves.

        Raises:
            DataError: If there is no motion.
        """
        motion = known_motion(clip, "mask.kind: motion_bins")
        B, device, slices = len(clip), clip.device, self.grid[0]
        sites_BS = draws.uniform((B, self.tokens // slices), device)
        noise_BN = draws.uniform((B, self.tokens), device)
        tubes_BN = in_tubes_BN(sites_BS, noise_BN)
        order_BN = descending(motion.magnitude_BN(slices), tubes_BN)
        bins_BK = torch.cat(
            [
                drawn(order_BN[:, : self.upper], noise_BN, self.moving),
                drawn(order_BN[:, self.upper :], noise_BN, self.visible - self.moving),
            ],
            dim=1,
        )
        tube_BK = tubes_BN.argsort(dim=1, stable=True)[:, : self.visible]
        visible_BK = torch.where(motion.missing_B[:, None], tube_BK, bins_BK)
        return MaskPlan.from_visible(visible_BK, self.tokens)


def drawn(index_BX: Tensor, noise_BN: Tensor, count: int) -> Tensor:
    """Return `count` of the given tokens of each clip, those with most noise."""
    order_BX = noise_BN.gather(1, index_BX).argsort(dim=1, descending=True, stable=True)
    return index_BX.gather(1, order_BX[:, :count])
