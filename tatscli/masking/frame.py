"""`frame`: whole slices hidden, an ablation of VideoMAE (Tong et al. 2022, arXiv 2203.12602).

Shapes: B batch, N tokens, T slices, S sites of a slice, K visible.
"""

from __future__ import annotations

from typing import Any

import torch

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count
from tatscli.masking.plan import MaskPlan


class FrameMasker(Masker):
    """Hides int(ratio x slices) slices of each clip, every set of them equally likely.

    Raises:
        RecipeError: If the ratio is too small to hide a single slice.
    """

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.slices, self.sites = grid[0], grid[1] * grid[2]
        hidden = share_count(self.slices, config.ratio)
        if not hidden:
            hint = f"use a ratio of at least {1 / self.slices:.4g}, or longer clips"
            raise RecipeError(
                f"`mask.ratio: {config.ratio}` hides none of the {self.slices} slices",
                hint="a clip of one slice cannot hide a whole slice: use longer clips"
                if grid[0] == 1
                else hint,
            )
        self.visible = (self.slices - hidden) * self.sites

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Draw the slices to show of each clip."""
        B, device = len(clip), clip.device
        scores_BT = draws.uniform((B, self.slices), device)
        # A stable sort makes the same choice on every device.
        order_BT = scores_BT.argsort(dim=1, descending=True, stable=True)
        shown_BT = order_BT[:, : self.visible // self.sites]
        sites_S = torch.arange(self.sites, device=device)
        visible_BK = (shown_BT[:, :, None] * self.sites + sites_S).flatten(1)
        return MaskPlan.from_visible(visible_BK, self.tokens)
