"""What targets of a tokenizer share: whom they ask.

Shapes: B batch, M tokens picked, R codes of a cube, C values that a head gives for a token.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import ClipForm
from tatscli.recipe import schema
from tatscli.targets.base import Target
from tatscli.tokenizer.asked import Asked


class TokenizerTarget(Target):
    """Compares with what a frozen tokenizer says of the cubes.

    Attributes:
        chosen: How `codes_of` comes from a prediction to codes, in words; empty where it does not.
        asked: The tokenizer.
        cached: Under which name the store holds the codes; None asks the tokenizer in every step.

    Raises:
        RecipeError: If the codes do not fill the grid of cubes.
        CheckpointError: If there is no such tokenizer.
    """

    chosen: str = ""

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

    def codes_of(self, prediction_BMC: Tensor) -> Tensor | None:
        """Return the codes that a prediction comes to: int64 (B, M, R); None where it is none of
        codes."""
        return None
