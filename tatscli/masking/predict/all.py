"""`all`: every token that the mask leaves to predict."""

from __future__ import annotations

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.predict.base import PredictRule


class AllRule(PredictRule):
    """Leaves the plan as it is."""

    def select(self, plan: MaskPlan, clip: Clip, draws: Draws) -> MaskPlan:
        """Return the plan."""
        return plan
