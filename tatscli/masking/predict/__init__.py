"""Rules of `predict`: a new one is a file, its recipe section and a line here."""

from __future__ import annotations

from tatscli.data.clip import ClipForm
from tatscli.masking.predict.all import AllRule
from tatscli.masking.predict.base import PredictRule
from tatscli.masking.predict.everest import EverestRule
from tatscli.masking.predict.flow import FlowRule
from tatscli.masking.predict.random import RandomRule
from tatscli.masking.predict.running_cell import RunningCellRule
from tatscli.masking.predict.tokenizer import TokenizerRule
from tatscli.masking.predict.uniform import UniformRule
from tatscli.recipe import schema

PREDICT_RULES: dict[str, type[PredictRule]] = {
    "all": AllRule,
    "random": RandomRule,
    "uniform": UniformRule,
    "running_cell": RunningCellRule,
    "flow": FlowRule,
    "everest": EverestRule,
    "tokenizer": TokenizerRule,
}


def build_predict(config: schema.Predict, *, form: ClipForm, predicted: int) -> PredictRule:
    """Build the rule a recipe asks for, over a mask that leaves `predicted` tokens to predict.

    Args:
        config: The recipe's `resolved_predict`.
        form: How clips are cut.
        predicted: Tokens of each clip that the mask leaves to predict.

    Raises:
        RecipeError: If the recipe's budget is larger, or a tokenizer cannot be followed.
    """
    return PREDICT_RULES[config.kind](config, form=form, predicted=predicted)
