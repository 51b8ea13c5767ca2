"""Predict-selections: a new one is a file, its recipe section and a line here."""

from __future__ import annotations

from tatscli.masking.selection.all import AllSelection
from tatscli.masking.selection.base import Selection
from tatscli.masking.selection.everest import EverestSelection
from tatscli.masking.selection.flow import FlowSelection
from tatscli.masking.selection.random import RandomSelection
from tatscli.masking.selection.running_cell import RunningCellSelection
from tatscli.masking.selection.uniform import UniformSelection
from tatscli.recipe import schema

SELECTIONS: dict[str, type[Selection]] = {
    "all": AllSelection,
    "random": RandomSelection,
    "uniform": UniformSelection,
    "running_cell": RunningCellSelection,
    "flow": FlowSelection,
    "everest": EverestSelection,
}


def build_selection(
    config: schema.Predict, *, grid: tuple[int, int, int], predicted: int
) -> Selection:
    """Build the selection a recipe asks for, over a mask that gives `predicted` tokens to predict.

    Raises:
        RecipeError: If the recipe's budget is larger.
    """
    return SELECTIONS[config.kind](config, grid=grid, predicted=predicted)
