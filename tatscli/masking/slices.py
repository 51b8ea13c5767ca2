"""`SliceMasker`: masks that hide equally many tokens of every slice.

Shapes: B batch, N tokens, T slices, S sites of a slice.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from tatscli.data.motion import MotionField
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, uniform_scores
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, known_motion


class SliceMasker(Masker):
    """Hides int(ratio x sites) sites of every slice, VideoMAE's rounding: those that score highest.

    Where the mask needs motion and a clip has none, it is a tube mask of the same count.

    Raises:
        RecipeError: If the ratio is too small to hide a single site.
    """

    def __init__(self, grid: tuple[int, int, int], ratio: float) -> None:
        super().__init__(grid, ratio)
        self.sites = grid[1] * grid[2]
        self.hidden = share_count(self.sites, ratio)
        if not self.hidden:
            raise RecipeError(
                f"`mask.ratio: {ratio}` hides none of {self.sites} sites",
                hint=f"use a ratio of at least {1 / self.sites:.4g}, or larger clips",
            )
        self.visible = grid[0] * (self.sites - self.hidden)

    def rank_BTS(
        self, motion: MotionField | None, noise_BTS: Tensor, generator: Generator | None
    ) -> Tensor:
        """Score the sites of every slice: the highest are hidden.

        Args:
            motion: The clips' motion, if the mask needs it.
            noise_BTS: Uniform in [0, 1), alike in all slices; it decides between equals.
            generator: For further draws.
        """
        raise NotImplementedError

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: Generator | None = None,
    ) -> MaskPlan:
        """Rank the sites of every slice and hide the first."""
        B, device = tokens_BND.shape[0], tokens_BND.device
        slices = self.grid[0]
        if self.needs_motion:
            motion = known_motion(motion, type(self).__name__)
        noise_B1S = uniform_scores((B, 1, self.sites), device, generator)
        noise_BTS = noise_B1S.expand(B, slices, self.sites)
        with torch.autocast(device.type, enabled=False):
            rank_BTS = self.rank_BTS(motion, noise_BTS, generator)
        if self.needs_motion and motion is not None:
            rank_BTS = rank_BTS.masked_fill(motion.missing_B[:, None, None], 0)
        order_BTS = descending(rank_BTS, noise_BTS)
        first_T1 = torch.arange(slices, device=device)[:, None] * self.sites
        visible_BTS = order_BTS[:, :, self.hidden :] + first_T1
        return MaskPlan.from_visible(visible_BTS.flatten(1), self.tokens)
