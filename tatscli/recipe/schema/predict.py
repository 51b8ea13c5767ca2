"""Predict-selections: which of the hidden tokens the head predicts and the loss counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tatscli.recipe.schema.section import Count, Positive, Section, Share
from tatscli.recipe.schema.tokenizer import TrainedTokenizer


class PredictAll(Section):
    """Every token that the mask gives to predict."""

    kind: Literal["all"] = "all"


class PredictRandom(Section):
    """Any of them."""

    kind: Literal["random"]
    budget: Count | None = None
    """Tokens per clip; null is 15 % of the clip, as LVMAE compares."""


class PredictUniform(Section):
    """All of every so many slices (a baseline of LVMAE)."""

    kind: Literal["uniform"]
    every: Count = 7
    """Slices from one that is predicted to the next; the first is drawn."""
    budget: Count | None = None
    """Tokens per clip; null is their number divided by `every`."""


class PredictRunningCell(Section):
    """Half of each cell of 2 x 2 sites, which runs on by one place a slice (VideoMAE V2)."""

    kind: Literal["running_cell"]
    budget: Count | None = None
    """Tokens per clip; null is half of them, as published."""


class PredictFlow(Section):
    """Those that move most, and some at random (a baseline of LVMAE)."""

    kind: Literal["flow"]
    budget: Count | None = None
    """Tokens per clip; null is 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Share of the budget that is drawn at random; published."""


class PredictEverest(Section):
    """Those whose patch embedding changes most, and some at random (a baseline of LVMAE)."""

    kind: Literal["everest"]
    budget: Count | None = None
    """Tokens per clip; null is 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Share of the budget that is drawn at random; published."""


class PredictTokenizer(Section):
    """Those that a tokenizer scores highest, and some at random: LVMAE's decoder masking."""

    kind: Literal["tokenizer"]
    tokenizer: TrainedTokenizer | None = None
    """Whose scores; null takes over the tokenizer of the first of the `targets` that has one."""
    scale: Positive | None = None
    """Frames are resized by this before the tokenizer sees them; null is that of the target, or 1
    for a tokenizer of its own."""
    cached: bool | None = None
    """Read the scores that `tats store encode` wrote; null does as the target does, or false for a
    tokenizer of its own."""
    sampled: bool = False
    """Draw in proportion to the scores, without replacement, in place of the highest ones."""
    budget: Count | None = None
    """Tokens per clip; null is 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Share of the budget that is drawn at random; published."""


Predict = Annotated[
    PredictAll
    | PredictRandom
    | PredictUniform
    | PredictRunningCell
    | PredictFlow
    | PredictEverest
    | PredictTokenizer,
    Field(discriminator="kind"),
]
