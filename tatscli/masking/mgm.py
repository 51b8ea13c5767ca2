"""`mgm`: rectangles that follow the content (MGM, Fan et al. 2023, arXiv 2308.12962).

Published: codec motion vectors steer where the mask lies over time, at a ratio of 0.75. No code is
public, so what follows is our design: base slice, shape, tracking and ranking.

Shapes: B batch, T slices, R steps away from the base slice, S sites of a slice, K rectangles.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tatscli.data.motion import MotionField
from tatscli.masking.base_slice import base_slice_B, by_slice, steps_2BR
from tatscli.masking.block import BlockMasker
from tatscli.masking.draw import gumbel_top_k

STILL = 1e-6  # added to motion as a share of chance: where nothing moves, any site will do
NOISE = 1.0  # pixels; a clip whose fastest token moves less is not stretched to full range


class MgmMasker(BlockMasker):
    """Places rectangles where it moves, and moves them with what is inside."""

    needs_motion = True

    def rank_BTS(
        self, motion: MotionField | None, noise_BTS: Tensor, generator: Generator | None
    ) -> Tensor:
        """Rank by depth in the rectangles, with a little preference for what moves."""
        assert motion is not None
        pull_BTS = self.config.pull * relative_speed_BTS(motion, self.grid[0])
        return super().rank_BTS(motion, noise_BTS, generator) + pull_BTS

    def centres_BTK2(
        self, half_BK2: Tensor, motion: MotionField | None, generator: Generator | None
    ) -> Tensor:
        """Draw the places in the base slice and follow the motion from there."""
        assert motion is not None
        B, slices = len(half_BK2), self.grid[0]
        # The square keeps the many tokens that tremble from outweighing the few that move.
        energy_BTS = motion.magnitude_BN(slices).reshape(B, slices, self.sites).square()
        base_B = base_slice_B(energy_BTS, self.config.base, generator)
        energy_BS = energy_BTS[torch.arange(B, device=base_B.device), base_B]
        weight_BS = energy_BS + STILL * energy_BS.amax(dim=1, keepdim=True) + 1e-12
        if self.config.centre == "sample":
            site_BK = gumbel_top_k(weight_BS.log(), self.config.blocks, generator)
            centre_BK2 = self.sites_S2[site_BK]
        else:
            share_BS = weight_BS / weight_BS.sum(dim=1, keepdim=True)
            centre_BK2 = (share_BS @ self.sites_S2)[:, None]
        move_BTS2 = motion.displacement_BThw2(slices).reshape(B, slices, self.sites, 2)
        return self._follow(centre_BK2, half_BK2, move_BTS2, base_B)

    def _follow(
        self, centre_BK2: Tensor, half_BK2: Tensor, move_BTS2: Tensor, base_B: Tensor
    ) -> Tensor:
        """Move centres by the magnitude-weighted mean of the motion inside: (B, T, K, 2)."""
        B, slices = move_BTS2.shape[:2]
        step_2BR, exists_2BR = steps_2BR(base_B, slices)
        clip_2B1 = torch.arange(B, device=base_B.device).repeat(2)[:, None]
        move_2BRS2 = move_BTS2[clip_2B1, step_2BR]
        sign_2B11 = torch.ones_like(base_B).repeat(2)[:, None, None]
        sign_2B11[B:] = -1
        # Motion is known where content arrives. Forwards, what was inside is found by its origin.
        origin_2BRS2 = self.sites_S2 - move_2BRS2 * (sign_2B11 > 0)[..., None]
        length_2BRS1 = move_2BRS2.norm(dim=-1, keepdim=True) * exists_2BR[..., None, None]
        pull_2BRS2 = length_2BRS1 * move_2BRS2 * sign_2B11[..., None]
        weighted_2BRS3 = torch.cat([pull_2BRS2, length_2BRS1], dim=-1)
        corners_22 = self.sites_S2[0], self.sites_S2[-1]
        half_2BK12 = half_BK2.repeat(2, 1, 1)[:, :, None]
        path = [centre_BK2.repeat(2, 1, 1)]
        for away in range(slices - 1):
            here_2BK2 = path[-1]
            distance_2BKS2 = (origin_2BRS2[:, away, None] - here_2BK2[:, :, None]).abs()
            inside_2BKS = (distance_2BKS2 <= half_2BK12).all(dim=-1).to(weighted_2BRS3.dtype)
            total_2BK3 = inside_2BKS @ weighted_2BRS3[:, away]
            mean_2BK2 = total_2BK3[..., :2] / total_2BK3[..., 2:].clamp(min=1e-9)
            path.append((here_2BK2 + mean_2BK2).clamp(*corners_22))
        return by_slice(torch.stack(path, dim=1), base_B, slices)


def relative_speed_BTS(motion: MotionField, slices: int) -> Tensor:
    """Return the speed of every token by that of the clip's fastest, in [0, 1]."""
    speed_BN = motion.magnitude_BN(slices)
    top_B1 = speed_BN.amax(dim=1, keepdim=True).clamp(min=NOISE)
    return (speed_BN / top_B1).reshape(len(speed_BN), slices, -1)
