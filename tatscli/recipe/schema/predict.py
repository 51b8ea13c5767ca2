"""Which of the hidden tokens the head predicts; the loss is computed on those.

A slice is one time step of the token grid.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tatscli.recipe.schema.section import Count, Positive, Section, Share
from tatscli.recipe.schema.tokenizer import TrainedTokenizer


class PredictAll(Section):
    """All hidden tokens."""

    kind: Literal["all"] = "all"


class PredictRandom(Section):
    """Random tokens."""

    kind: Literal["random"]
    budget: Count | None = None
    """Tokens per clip; null: 15 % of the clip, as in LVMAE's comparisons."""


class PredictUniform(Section):
    """Every k-th slice (a baseline of LVMAE)."""

    kind: Literal["uniform"]
    every: Count = 7
    """Predict every k-th slice, with a random offset."""
    budget: Count | None = None
    """Tokens per clip; null: the number of hidden tokens divided by `every`."""


class PredictRunningCell(Section):
    """Half of each 2 x 2 cell, shifting by one position per slice (VideoMAE V2's running cell)."""

    kind: Literal["running_cell"]
    budget: Count | None = None
    """Tokens per clip; null: half of them, as published."""


class PredictFlow(Section):
    """The tokens that move most, plus some random ones (a baseline of LVMAE)."""

    kind: Literal["flow"]
    budget: Count | None = None
    """Tokens per clip; null: 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Fraction of the budget that is drawn at random; the published value."""


class PredictEverest(Section):
    """The tokens whose patch embedding changes most over time, plus some random ones (a baseline of
    LVMAE)."""

    kind: Literal["everest"]
    budget: Count | None = None
    """Tokens per clip; null: 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Fraction of the budget that is drawn at random; the published value."""


class PredictTokenizer(Section):
    """The tokens that an adaptive tokenizer scores highest, plus some random ones (LVMAE's decoder
    masking)."""

    kind: Literal["tokenizer"]
    tokenizer: TrainedTokenizer | None = None
    """Tokenizer that gives the scores; null: that of the first entry of `targets` that has one."""
    scale: Positive | None = None
    """Resize frames by this factor for the tokenizer; null: as in the target, or 1 if `tokenizer`
    is given."""
    cached: bool | None = None
    """Read scores precomputed by `tats store encode`; null: as in the target, or false if
    `tokenizer` is given."""
    sampled: bool = False
    """Sample in proportion to the scores, without replacement, instead of taking the highest."""
    budget: Count | None = None
    """Tokens per clip; null: 15 % of the clip, as published."""
    random: Share = 1 / 3
    """Fraction of the budget that is drawn at random; the published value."""


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
