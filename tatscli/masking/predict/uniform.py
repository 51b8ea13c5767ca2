"""`uniform`: all tokens of every N-th slice, a baseline of LVMAE (arXiv 2411.13683).

Shapes: B batch, N tokens (time-major), D width, M to predict.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.ranked import RankedRule
from tatscli.recipe import schema


class UniformRule(RankedRule):
    """Predicts slices `first`, `first + every`, ..., the first one drawn for each clip.

    Ours: the budget is exact. Where those slices hold more hidden tokens, some of them are left
    out at random; where they hold fewer, tokens of other slices are drawn.
    """

    def __init__(self, config: schema.PredictUniform, *, form: ClipForm, predicted: int) -> None:
        super().__init__(config, form=form, predicted=predicted)
        self.every = config.every

    def default_budget(self, config: schema.PredictUniform, predicted: int) -> int:
        """Return the share of the clip that those slices are on average."""
        return self.tokens // config.every

    def rank_BM(self, plan: MaskPlan, clip: Clip, noise_BM: Tensor, draws: Draws) -> Tensor:
        """Put the chosen slices first, by chance within them and without."""
        slices = self.grid[0]
        draw_B1 = draws.uniform((noise_BM.shape[0], 1), noise_BM.device)
        # Of clips shorter than a period, too, one slice is chosen.
        first_B1 = (draw_B1 * min(self.every, slices)).long()
        slice_BM = plan.predict_BM // (self.tokens // slices)
        return noise_BM + ((slice_BM - first_B1) % self.every == 0)
