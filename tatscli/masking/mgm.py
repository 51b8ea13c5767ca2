"""`mgm`: rectangles that follow the content (MGM, Fan et al. 2023, arXiv 2308.12962).

Published: codec motion vectors steer where the mask lies over time, at a ratio of 0.75. No code is
public, so what follows is our design: base frame, shape, tracking and ranking.

Shapes: B batch, N tokens, T slices, F frames, R steps away from the base frame, S sites of a slice,
K rectangles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.block import BlockMasker
from tatscli.masking.draw import gumbel_top_k
from tatscli.masking.saliency import known_motion
from tatscli.masking.tracking import base_frame_B, by_frame, steps_2BR

STILL = 0.05  # pixels; if all tokens move less, a rectangle may lie anywhere
NOISE = 1.0  # pixels; a clip whose fastest token moves less is not stretched to full range


class MgmMasker(BlockMasker):
    """Places rectangles where the clip moves, and moves them with their content."""

    needs_motion = True

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Rank by depth in the rectangles, with a slight preference for moving tokens."""
        speed_BN = known_motion(clip, "mask.kind: mgm").magnitude_BN(self.grid[0])
        top_B1 = speed_BN.amax(dim=1, keepdim=True).clamp(min=NOISE)
        pull_BTS = self.config.pull * (speed_BN / top_B1).view_as(noise_BTS)
        return super().rank_BTS(clip, noise_BTS, draws) + pull_BTS

    def centres_BTK2(self, half_BK2: Tensor, clip: Clip, draws: Draws) -> Tensor:
        """Draw the places in the base frame and follow the motion from there."""
        motion = known_motion(clip, "mask.kind: mgm")
        # The square keeps jitter in many tokens from outweighing real motion in a few.
        energy_BFS = motion.speed_BThw.flatten(2).square()
        base_B = base_frame_B(energy_BFS, self.config.base, draws)
        energy_BS = energy_BFS[torch.arange(len(base_B), device=base_B.device), base_B]
        weight_BS = energy_BS + STILL**2
        if self.config.centre == "sample":
            site_BK = gumbel_top_k(weight_BS.log(), self.config.blocks, draws)
            centre_BK2 = self.sites_S2[site_BK]
        else:
            share_BS = weight_BS / weight_BS.sum(dim=1, keepdim=True)
            centre_BK2 = (share_BS @ self.sites_S2)[:, None]
        path_BFK2 = self._follow(centre_BK2, half_BK2, motion.moves_BTS2, base_B)
        return path_BFK2.unflatten(1, (self.grid[0], -1)).mean(dim=2)

    def _follow(
        self, centre_BK2: Tensor, half_BK2: Tensor, move_BFS2: Tensor, base_B: Tensor
    ) -> Tensor:
        """Move centres by the magnitude-weighted mean of the motion inside: (B, F, K, 2)."""
        B, frames = move_BFS2.shape[:2]
        step_2BR, exists_2BR = steps_2BR(base_B, frames)
        clip_2B1 = torch.arange(B, device=base_B.device).repeat(2)[:, None]
        move_2BRS2 = move_BFS2[clip_2B1, step_2BR]
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
        for away in range(frames - 1):
            here_2BK2 = path[-1]
            distance_2BKS2 = (origin_2BRS2[:, away, None] - here_2BK2[:, :, None]).abs()
            inside_2BKS1 = (distance_2BKS2 <= half_2BK12).all(dim=-1, keepdim=True)
            total_2BK3 = (inside_2BKS1 * weighted_2BRS3[:, away, None]).sum(dim=2)
            mean_2BK2 = total_2BK3[..., :2] / total_2BK3[..., 2:].clamp(min=1e-9)
            path.append((here_2BK2 + mean_2BK2).clamp(*corners_22))
        return by_frame(torch.stack(path, dim=1), base_B)
