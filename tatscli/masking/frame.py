"""`frame`: whole slices hidden, an ablation of VideoMAE (Tong et al. 2022, arXiv 2203.12602).

Shapes: B batch, N tokens, T slices, S sites of a slice, K visible.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tatscli.data.motion import MotionField
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, uniform_scores
from tatscli.masking.plan import MaskPlan


class FrameMasker(Masker):
    """Hides int(ratio x slices) slices of each clip, every set of them equally likely.

    Raises:
        RecipeError: If the ratio is too small to hide a single slice.
    """

    def __init__(self, grid: tuple[int, int, int], ratio: float) -> None:
        super().__init__(grid, ratio)
        self.slices, self.sites = grid[0], grid[1] * grid[2]
        hidden = share_count(self.slices, ratio)
        if not hidden:
            hint = f"use a ratio of at least {1 / self.slices:.4g}, or longer clips"
            raise RecipeError(
                f"`mask.ratio: {ratio}` hides none of {self.slices} slices",
                hint="clips of a single slice cannot be hidden whole" if grid[0] == 1 else hint,
            )
        self.visible = (self.slices - hidden) * self.sites

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: Generator | None = None,
    ) -> MaskPlan:
        """Draw the slices to show of each clip."""
        B, device = tokens_BND.shape[0], tokens_BND.device
        scores_BT = uniform_scores((B, self.slices), device, generator)
        # A stable sort makes the same choice on every device.
        order_BT = scores_BT.argsort(dim=1, descending=True, stable=True)
        shown_BT = order_BT[:, : self.visible // self.sites]
        sites_S = torch.arange(self.sites, device=device)
        visible_BK = (shown_BT[:, :, None] * self.sites + sites_S).flatten(1)
        return MaskPlan.from_visible(visible_BK, self.tokens)
