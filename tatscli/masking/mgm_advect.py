"""`mgm_advect`: a random mask carried along the codec's vectors.

MGMAE (Huang et al. 2023, arXiv 2308.10794; MCG-NJU/MGMAE, engine_for_mgmae.py) does so with optical
flow: a map of Gaussians around the visible sites of the middle frame is warped outwards frame by
frame, what has no origin takes the map unwarped, and the highest sites are visible. Ours warps
positions instead of the map, so nothing blurs, and works on tokens.

Shapes: B batch, T slices, F frames, R steps away from the base frame, S sites of a slice, V visible
sites, h and w token rows and columns, X any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.block import site_positions
from tatscli.masking.saliency import known_motion
from tatscli.masking.slices import SliceMasker
from tatscli.masking.tracking import base_frame_B, by_frame, steps_2BR

SIGMA = 0.5  # of the Gaussians, in sites; ours


class MgmAdvectMasker(SliceMasker):
    """Ranks every token by where its content lay in the base frame's random mask."""

    needs_motion = True
    sites_S2: Tensor

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.register_buffer("sites_S2", site_positions(grid), persistent=False)

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Rank by the emptiness of the map where the token's content lay in the base frame."""
        motion = known_motion(clip, "mask.kind: mgm_advect")
        slices = self.grid[0]
        energy_BFS = motion.speed_BThw.flatten(2).square()
        base_B = base_frame_B(energy_BFS, self.config.base, draws)
        origin_BFS2 = self._origins(motion.moves_BTS2, base_B)
        seen_BV = noise_BTS[:, 0].topk(self.sites - self.hidden, dim=1).indices
        centre_B1V2 = self.sites_S2[seen_BV][:, None]
        # Not by way of a matrix product: in TF32 another mask would come of it.
        distance_BFSV = torch.cdist(
            origin_BFS2,
            centre_B1V2.expand(-1, origin_BFS2.shape[1], -1, -1),
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        map_BFS = (distance_BFSV.square() / (-2 * SIGMA**2)).exp().sum(dim=-1)
        return -map_BFS.unflatten(1, (slices, -1)).mean(dim=2)

    def _origins(self, move_BFS2: Tensor, base_B: Tensor) -> Tensor:
        """Trace every site of every frame back to the base frame: (B, F, S, 2)."""
        B, frames = move_BFS2.shape[:2]
        _, h, w = self.grid
        move_BFhw2 = move_BFS2.unflatten(2, (h, w))
        step_2BR, exists_2BR = steps_2BR(base_B, frames)
        clip_B1 = torch.arange(B, device=base_B.device)[:, None]
        site_hw2 = self.sites_S2.reshape(h, w, 2)
        # Towards the base: where it came from, or where it goes. The latter is given by the motion
        # at the place it goes to.
        came_BRhw2 = -move_BFhw2[clip_B1, step_2BR[:B]]
        guess_BRhw2 = move_BFhw2[clip_B1, step_2BR[B:]]
        goes_hw2 = self._sample(guess_BRhw2.flatten(0, 1), (site_hw2 + guess_BRhw2).flatten(0, 1))
        goes_BRhw2 = goes_hw2.reshape(guess_BRhw2.shape)
        back_2BRhw2 = torch.cat([came_BRhw2, goes_BRhw2]) * exists_2BR[..., None, None, None]
        origin = [site_hw2.expand(2 * B, -1, -1, -1)]
        edge_2 = 0.5 - self.sites_S2[0]
        for away in range(frames - 1):
            place_2Bhw2 = site_hw2 + back_2BRhw2[:, away]
            offset_2Bhw2 = self._sample(origin[-1] - site_hw2, place_2Bhw2)
            outside_2Bhw1 = (place_2Bhw2.abs() > edge_2).any(dim=-1, keepdim=True)
            origin.append(torch.where(outside_2Bhw1, site_hw2, place_2Bhw2 + offset_2Bhw2))
        return by_frame(torch.stack(origin, dim=1), base_B).flatten(2, 3)

    def _sample(self, value_Xhw2: Tensor, place_Xhw2: Tensor) -> Tensor:
        """Read values between sites, bilinearly; beyond the border those of the border."""
        # Torch's places run from -1 to 1 between the outer borders of the picture.
        size_2 = 0.5 - self.sites_S2[0]
        read_X2hw = functional.grid_sample(
            value_Xhw2.permute(0, 3, 1, 2).float(),
            (place_Xhw2 / size_2).float(),
            mode="bilinear",
            padding_mode="border",
            align_corners=False,
        )
        return read_X2hw.permute(0, 2, 3, 1)
