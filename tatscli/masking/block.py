"""`block`: rectangles that hide the same sites of every slice, and what moving ones share.

A rectangle only ranks the sites: those deepest inside come first, then those nearest to its rim.
So exactly as many are hidden wherever it lies, also beyond the border.

Shapes: B batch, T slices, S sites of a slice, K rectangles; positions are in sites from the middle
of the picture, x first, so that mirroring changes a sign only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.draw import gumbel_top_k
from tatscli.masking.slices import SliceMasker


class BlockMasker(SliceMasker):
    """Hides the sites nearest to rectangles that stand still.

    Raises:
        RecipeError: If nothing is hidden, or there are more rectangles than sites.
    """

    sites_S2: Tensor

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        if config.blocks > self.sites:
            raise RecipeError(
                f"`mask.blocks: {config.blocks}` is more than the {self.sites} tokens of a slice",
                hint="use fewer rectangles, or larger frames",
            )
        self.register_buffer("sites_S2", site_positions(grid), persistent=False)

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Rank by the signed distance to the nearest rim, positive inside."""
        B = len(noise_BTS)
        half_BK2 = self.draw_halves_BK2(B, noise_BTS.device, draws)
        centre_BTK2 = self.centres_BTK2(half_BK2, clip, draws)
        away_BTKS2 = (self.sites_S2 - centre_BTK2[:, :, :, None]).abs() - half_BK2[:, None, :, None]
        depth_BTS = -away_BTKS2.amax(dim=-1).amin(dim=2)
        return depth_BTS + self.config.noise * noise_BTS

    def draw_halves_BK2(self, B: int, device: torch.device, draws: Draws) -> Tensor:
        """Draw half the width and height of each rectangle: equal areas, log-uniform aspects."""
        blocks, (low, high) = self.config.blocks, self.config.aspect
        area = self.hidden / blocks
        share_BK = draws.uniform((B, blocks), device)
        aspect_BK = low * (high / low) ** share_BK
        _, rows, columns = self.grid
        # A side that is longer than the picture leaves its area to the other one.
        width_BK = (area * aspect_BK).sqrt().clamp(min(area / rows, columns), columns)
        return torch.stack([width_BK, area / width_BK], dim=-1) / 2

    def centres_BTK2(self, half_BK2: Tensor, clip: Clip, draws: Draws) -> Tensor:
        """Place the rectangles in every slice: here on any sites, the same in all slices."""
        B, slices = len(half_BK2), self.grid[0]
        even_BS = half_BK2.new_zeros(B, self.sites)
        site_BK = gumbel_top_k(even_BS, self.config.blocks, draws)
        return self.sites_S2[site_BK][:, None].expand(-1, slices, -1, -1)


def site_positions(grid: tuple[int, int, int]) -> Tensor:
    """Return the middle of every site of a slice, (S, 2), x first, from the picture's middle."""
    _, rows, columns = grid
    y = torch.arange(rows) - (rows - 1) / 2
    x = torch.arange(columns) - (columns - 1) / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(math.prod(grid[1:]), 2)
