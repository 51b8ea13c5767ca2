"""Predict-selections: a new one is a file, its recipe section and a line here."""

from __future__ import annotations

from tatscli.data.clip import ClipForm
from tatscli.masking.selection.all import AllSelection
from tatscli.masking.selection.base import Selection
from tatscli.masking.selection.everest import EverestSelection
from tatscli.masking.selection.flow import FlowSelection
from tatscli.masking.selection.random import RandomSelection
from tatscli.masking.selection.running_cell import RunningCellSelection
from tatscli.masking.selection.tokenizer import TokenizerSelection
from tatscli.masking.selection.uniform import UniformSelection
from tatscli.recipe import schema

SELECTIONS: dict[str, type[Selection]] = {
    "all": AllSelection,
    "random": RandomSelection,
    "uniform": UniformSelection,
    "running_cell": RunningCellSelection,
    "flow": FlowSelection,
    "everest": EverestSelection,
    "tokenizer": TokenizerSelection,
}


def build_selection(config: schema.Predict, *, form: ClipForm, predicted: int) -> Selection:
    """Build the selection a recipe asks for, over a mask that gives `predicted` tokens to predict.

    Args:
        config: The recipe's `resolved_predict`.
        form: How clips are cut.
        predicted: Tokens of each clip that the mask gives to predict.

    Raises:
        RecipeError: If the recipe's budget is larger, or a tokenizer cannot be followed.
    """
    return SELECTIONS[config.kind](config, form=form, predicted=predicted)
