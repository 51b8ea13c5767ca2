"""`tube`: the same hidden sites in every slice (VideoMAE, Tong et al. 2022, arXiv 2203.12602)."""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, uniform_scores
from tatscli.masking.plan import MaskPlan


class TubeMasker(Masker):
    """Hides int(ratio x sites) sites in all slices, as VideoMAE: 160 of 1,568 tokens show at 0.9.

    Raises:
        RecipeError: If the ratio is too small to hide a single site.
    """

    def __init__(self, grid: tuple[int, int, int], ratio: float) -> None:
        super().__init__(grid, ratio)
        self.sites = grid[1] * grid[2]
        hidden = share_count(self.sites, ratio)
        if not hidden:
            raise RecipeError(
                f"`mask.ratio: {ratio}` hides none of {self.sites} sites",
                hint=f"use a ratio of at least {1 / self.sites:.4g}, or larger clips",
            )
        self.visible = grid[0] * (self.sites - hidden)

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Draw each clip's tubes on their own."""
        B, slices = tokens_BND.shape[0], self.grid[0]
        scores_BS = uniform_scores((B, self.sites), tokens_BND.device, generator)
        sites_BS = scores_BS.topk(self.visible // slices, dim=1).indices
        first_T = torch.arange(slices, device=tokens_BND.device) * self.sites
        visible_BK = (first_T[None, :, None] + sites_BS[:, None]).flatten(1)
        return MaskPlan.from_visible(visible_BK, self.tokens)
