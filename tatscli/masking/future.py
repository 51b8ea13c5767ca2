"""`future`: shows the past, and almost nothing of what comes later.

SiamMAE (Gupta et al. 2023, arXiv 2305.14344) shows a frame and 5 % of a later one; RVM (arXiv
2512.13684) several frames and 5 % of one that lies further ahead. Here the later slices are masked
together, each clip by itself. Ours: slices instead of frames, and a gap of a fixed length.

Shapes: B batch, N tokens (time-major), F tokens of the later slices, K visible, M predicted.
"""

from __future__ import annotations

from typing import Any

import torch

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import shown_count
from tatscli.masking.plan import MaskPlan
from tatscli.recipe import schema


class FutureMasker(Masker):
    """Shows the first slices whole and int(later tokens x (1 - ratio)) tokens of the later ones.

    Raises:
        RecipeError: If no later slice is left.
    """

    config: schema.FutureMask

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        sites, ahead = grid[1] * grid[2], config.past + config.gap
        if ahead >= grid[0]:
            gap = f" and `mask.gap: {config.gap}` leave" if config.gap else " leaves"
            raise RecipeError(
                f"`mask.past: {config.past}`{gap} nothing to predict of {grid[0]} slices",
                hint="use smaller values, or longer clips",
            )
        self.past = config.past * sites
        self.first = ahead * sites
        self.shown = shown_count(self.tokens - self.first, config.ratio)
        self.visible = self.past + self.shown

    @property
    def predicted(self) -> int:
        return self.tokens - self.first - self.shown

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Draw which of the later tokens are shown; those of the gap take no part."""
        later = self.tokens - self.first
        noise_BF = draws.uniform((len(clip), later), clip.device)
        order_BF = noise_BF.argsort(dim=1, stable=True) + self.first
        past_BK = torch.arange(self.past, device=clip.device).expand(len(clip), -1)
        shown_BK = order_BF[:, : self.shown].sort(dim=1).values
        hidden_BM = order_BF[:, self.shown :].sort(dim=1).values
        return MaskPlan(torch.cat([past_BK, shown_BK], dim=1), hidden_BM)
