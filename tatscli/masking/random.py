"""`random`: hidden tokens anywhere in space and time."""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.masking.base import Masker
from tatscli.masking.draw import uniform_scores, visible_count
from tatscli.masking.plan import MaskPlan


class RandomMasker(Masker):
    """Shows int(tokens x (1 - ratio)) tokens, every set of them equally likely."""

    def __init__(self, grid: tuple[int, int, int], ratio: float) -> None:
        super().__init__(grid, ratio)
        self.visible = visible_count(self.tokens, ratio)

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Draw each clip's plan on its own."""
        scores_BN = uniform_scores((tokens_BND.shape[0], self.tokens), tokens_BND.device, generator)
        visible_BK = scores_BN.topk(self.visible, dim=1).indices
        return MaskPlan.from_visible(visible_BK, self.tokens)
