"""`random`: hidden tokens anywhere in space and time."""

from __future__ import annotations

from typing import Any

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, visible_count
from tatscli.masking.plan import MaskPlan


class RandomMasker(Masker):
    """Shows int(tokens x (1 - ratio)) tokens, or hides int(tokens x ratio), every set of them
    equally likely."""

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        shown = visible_count(self.tokens, config.ratio)
        hides = config.rounding == "hidden"
        self.visible = self.tokens - share_count(self.tokens, config.ratio) if hides else shown

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Draw each clip's plan on its own."""
        scores_BN = draws.uniform((len(clip), self.tokens), clip.device)
        visible_BK = scores_BN.topk(self.visible, dim=1).indices
        return MaskPlan.from_visible(visible_BK, self.tokens)
