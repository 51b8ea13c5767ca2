"""What targets of a tokenizer share: whom they ask."""

from __future__ import annotations

from tatscli.data.clip import ClipForm
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.tokenizer.asked import Asked


class TokenizerTarget(Target):
    """Compares with what a frozen tokenizer says of the cubes.

    Attributes:
        asked: The tokenizer.
        cached: Under which name the store holds the codes; None asks the tokenizer in every step.

    Raises:
        RecipeError: If the codes do not fill the grid of cubes.
        CheckpointError: If there is no such tokenizer.
    """

    def __init__(self, config: schema.CodesTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.asked = Asked(
            config.tokenizer,
            form=form,
            by=f"`targets`: `{config.kind}`",
            frames=config.frames,
            scale=config.scale,
            cached=config.cached,
        )
        self.cached = self.asked.cached
