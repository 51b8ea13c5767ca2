"""From a recipe's `tokenizer` section to a tokenizer with fresh weights."""

from __future__ import annotations

from tatscli.recipe.schema import AdaptiveTokenizer as AdaptiveConfig
from tatscli.recipe.schema import Recipe
from tatscli.tokenizer.adaptive import AdaptiveTokenizer
from tatscli.tokenizer.base import TrainedTokenizer
from tatscli.tokenizer.image import ImageTokenizer


def build_tokenizer(recipe: Recipe) -> TrainedTokenizer:
    """Build the tokenizer a recipe trains; one of videos takes windows of `data.frames`."""
    config = recipe.tokenizer
    assert config is not None
    if isinstance(config, AdaptiveConfig):
        return AdaptiveTokenizer(config, window=recipe.data.frames)
    return ImageTokenizer(config)
