"""`RankedRule`: rules that score the tokens and predict the highest.

Shapes: B batch, N tokens (time-major), D width, M to predict.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.draw import share_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.base import PredictRule
from tatscli.masking.saliency import descending

LVMAE_SHARE = 0.15
"""Share of the clip's tokens that LVMAE (Gundavarapu et al. 2024, arXiv 2411.13683) predicts."""


class RankedRule(PredictRule):
    """Predicts the `budget` tokens that score highest.

    Raises:
        RecipeError: If the recipe's budget is more than the mask leaves to predict.
    """

    def __init__(self, config: Any, *, form: ClipForm, predicted: int) -> None:
        super().__init__(config, form=form, predicted=predicted)
        if config.budget is None:
            self.budget = max(1, min(predicted, self.default_budget(config, predicted)))
        elif config.budget <= predicted:
            self.budget = config.budget
        else:
            raise RecipeError(
                f"`predict.budget: {config.budget}` is more than the mask hides: "
                f"at most {predicted} of {self.tokens} tokens can be predicted",
                hint="null takes the default; a larger `mask.ratio` hides more tokens",
            )

    def default_budget(self, config: Any, predicted: int) -> int:
        """Return the budget where the recipe leaves it open, before it is capped."""
        return share_count(self.tokens, LVMAE_SHARE)

    def rank_BM(self, plan: MaskPlan, clip: Clip, noise_BM: Tensor, draws: Draws) -> Tensor:
        """Score the tokens of `plan.predict_BM`: the highest are predicted.

        Args:
            plan: The mask's plan.
            clip: The clips, with their motion if the rule needs it.
            noise_BM: Uniform in [0, 1), for the random part of the choice.
            draws: For further draws.
        """
        raise NotImplementedError

    def select(self, plan: MaskPlan, clip: Clip, draws: Draws) -> MaskPlan:
        """Return the plan with the `budget` highest of its tokens to predict.

        Raises:
            ValueError: If the plan has fewer tokens to predict.
        """
        B, M = plan.predict_BM.shape
        if self.budget > M:
            raise ValueError(f"cannot choose {self.budget} of {M} tokens to predict")
        noise_BM = draws.uniform((B, M), plan.predict_BM.device)
        rank_BM = self.rank_BM(plan, clip, noise_BM, draws)
        # A stable sort treats ties the same on every device.
        order_BM = rank_BM.argsort(dim=1, descending=True, stable=True)
        chosen = order_BM[:, : self.budget].sort(dim=1).values
        return MaskPlan(plan.visible_BK, plan.predict_BM.gather(1, chosen))


class SalientRule(RankedRule):
    """Predicts the most salient tokens, and of the others some at random.

    LVMAE divides the budget 2:1 (arXiv 2411.13683, section on decoder masking: 10 % of the clip
    and 5 %). Rounding is ours: round(random x budget) are drawn at random.
    """

    def __init__(self, config: Any, *, form: ClipForm, predicted: int) -> None:
        super().__init__(config, form=form, predicted=predicted)
        self.salient = self.budget - round(self.budget * config.random)

    def saliency_BN(self, clip: Clip) -> Tensor:
        """Return how salient each token of the clips is, (B, N); equal values mean random."""
        raise NotImplementedError

    def preference_BM(self, salient_BM: Tensor, draws: Draws) -> Tensor:
        """Turn how salient tokens are into what the highest are taken of: by default the same."""
        return salient_BM

    def rank_BM(self, plan: MaskPlan, clip: Clip, noise_BM: Tensor, draws: Draws) -> Tensor:
        """Put the most salient first, then chance."""
        salient_BM = self.saliency_BN(clip).gather(1, plan.predict_BM)
        preferred_BM = self.preference_BM(salient_BM, draws)
        # Ties are broken by noise of their own: the random part must not depend on them.
        ties_BM = draws.uniform(tuple(noise_BM.shape), noise_BM.device)
        top_BM = descending(preferred_BM, ties_BM)[:, : self.salient]
        return noise_BM.scatter_add(1, top_BM, torch.ones_like(noise_BM))
