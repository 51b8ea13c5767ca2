"""From a recipe's `tokenizer` section to a tokenizer with fresh weights."""

from __future__ import annotations

from tatscli.errors import RecipeError
from tatscli.recipe.schema import AdaptiveTokenizer as AdaptiveConfig
from tatscli.recipe.schema import Data, Recipe
from tatscli.tokenizer.adaptive import AdaptiveTokenizer
from tatscli.tokenizer.base import TrainedTokenizer
from tatscli.tokenizer.image import ImageTokenizer


def build_tokenizer(recipe: Recipe) -> TrainedTokenizer:
    """Build the tokenizer a recipe trains; one of videos takes windows of `data.frames`.

    Raises:
        RecipeError: If `keep` is more than the codes of a window, or leaves none to choose.
    """
    config = recipe.tokenizer
    assert config is not None
    if isinstance(config, AdaptiveConfig):
        _refuse_keep(config, recipe.data)
        return AdaptiveTokenizer(config, window=recipe.data.frames)
    return ImageTokenizer(config)


def _refuse_keep(config: AdaptiveConfig, data: Data) -> None:
    slices = data.frames // config.tubelet
    height, width = (side // config.stride for side in data.view_size)
    codes, first = slices * height * width, height * width
    if config.keep is None:
        return
    if slices == 1:
        raise RecipeError(
            f"`tokenizer.keep: {config.keep}`: a window of `data.frames: {data.frames}` is a single"
            " slice, which is always kept",
            hint="more frames, or `tokenizer.keep=null`, which keeps all and learns no scores",
        )
    least, most = (first + 1, codes - 1) if config.first == "among" else (1, codes - first - 1)
    if not least <= config.keep <= most:
        raise RecipeError(
            f"`tokenizer.keep: {config.keep}` must lie between {least} and {most}: a window has "
            f"{codes} codes, {first} of them in its first slice, which is always kept",
            hint="`tokenizer.keep=null` keeps all, and learns no scores",
        )
