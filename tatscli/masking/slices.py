"""`SliceMasker`: masks that hide equally many tokens of every slice.

Shapes: B batch, N tokens, T slices, S sites of a slice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.device import full_precision
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, known_motion


class SliceMasker(Masker):
    """Hides int(ratio x sites) sites of every slice, VideoMAE's rounding: those that score highest.

    Where the mask needs motion and a clip has none, it is a tube mask of the same count.

    Raises:
        RecipeError: If the ratio is too small to hide a single site.
    """

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.sites = grid[1] * grid[2]
        self.hidden = share_count(self.sites, config.ratio)
        if not self.hidden:
            raise RecipeError(
                f"`mask.ratio: {config.ratio}` hides none of the {self.sites} tokens of a slice",
                hint=f"use a ratio of at least {1 / self.sites:.4g}, or larger clips",
            )
        self.visible = grid[0] * (self.sites - self.hidden)

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Score the sites of every slice: the highest are hidden.

        Args:
            clip: The clips, with their motion if the mask needs it.
            noise_BTS: Uniform in [0, 1), the same in all slices; it breaks ties.
            draws: For further draws.
        """
        raise NotImplementedError

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Rank the sites of every slice and hide the first."""
        B, device, slices = len(clip), clip.device, self.grid[0]
        noise_B1S = draws.uniform((B, 1, self.sites), device)
        noise_BTS = noise_B1S.expand(B, slices, self.sites)
        with full_precision(device):
            rank_BTS = self.rank_BTS(clip, noise_BTS, draws)
        if self.needs_motion:
            missing_B11 = known_motion(clip, f"mask.kind: {self.config.kind}").missing_B[
                :, None, None
            ]
            rank_BTS = rank_BTS.masked_fill(missing_B11, 0)
        order_BTS = descending(rank_BTS, noise_BTS)
        first_T1 = torch.arange(slices, device=device)[:, None] * self.sites
        visible_BTS = order_BTS[:, :, self.hidden :] + first_T1
        return MaskPlan.from_visible(visible_BTS.flatten(1), self.tokens)
