"""`running_cell`: the decoder mask of VideoMAE V2 (Wang et al. 2023, arXiv 2303.16727).

Shapes: B batch, N tokens (time-major), D width, M to predict.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.ranked import RankedRule
from tatscli.recipe import schema

CELL = 4  # sites of a cell, 2 x 2


class RunningCellRule(RankedRule):
    """Predicts two neighbouring places of every cell, which run on by one in each slice.

    The places of a cell count along its rows, and all cells of a clip run alike, from a start
    drawn for the clip (OpenGVLab/VideoMAEv2, dataset/masking_generator.py). Over four slices every
    site is predicted twice.

    Ours: cells are cut off at the border of odd grids, and the budget is exact. Half of the hidden
    tokens is only on average what the pattern holds; the rest is drawn from the other half, or
    some of the pattern is left out at random.
    """

    def default_budget(self, config: schema.PredictRunningCell, predicted: int) -> int:
        """Return half of the hidden tokens."""
        return predicted // 2

    def rank_BM(self, plan: MaskPlan, clip: Clip, noise_BM: Tensor, draws: Draws) -> Tensor:
        """Put the pattern first, by chance within it and without."""
        _, rows, columns = self.grid
        draw_B1 = draws.uniform((noise_BM.shape[0], 1), noise_BM.device)
        start_B1 = (draw_B1 * CELL).long()
        token_BM = plan.predict_BM
        slice_BM = token_BM // (rows * columns)
        place_BM = token_BM // columns % rows % 2 * 2 + token_BM % columns % 2
        return noise_BM + ((place_BM + slice_BM + start_B1) % CELL < CELL // 2)
