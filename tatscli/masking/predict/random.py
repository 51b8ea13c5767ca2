"""`random`: random ones of the tokens that the mask leaves to predict (a baseline of LVMAE)."""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.ranked import RankedRule


class RandomRule(RankedRule):
    """Every set of `budget` tokens is equally likely."""

    def rank_BM(self, plan: MaskPlan, clip: Clip, noise_BM: Tensor, draws: Draws) -> Tensor:
        """Rank by chance."""
        return noise_BM
