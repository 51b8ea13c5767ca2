"""Targets: what the guesses are compared with. Each kind has a section of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tatscli.recipe.schema.section import Count, Positive, Section
from tatscli.recipe.schema.tokenizer import TrainedTokenizer


class PixelTarget(Section):
    """Pixels of the hidden tokens."""

    kind: Literal["pixels"]
    normalize: bool = True
    """Standardise each cube per channel by its own mean and deviation."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class DifferenceTarget(Section):
    """How the pixels of the hidden tokens change over time: MAM2's motion target."""

    kind: Literal["difference"]
    span: Literal["cube", "clip"] = "cube"
    """`cube`: between the frames of a cube. `clip`: from every frame of the cube to a later one of
    the clip, also beyond the cube."""
    gaps: Annotated[list[Count], Field(min_length=1)] = [1]
    """How many frames of the clip lie between the two; several are predicted side by side."""
    normalize: bool = True
    """Standardise each cube's differences by their own mean and deviation."""
    floor: Positive = 0.02
    """Least deviation that is divided by, of pixels in [0, 1], so that noise of still cubes is not
    blown up. Ours."""
    weight: Positive = 1.0
    """Weight of this target in the loss; MAM2's lambda."""


class CodesTarget(Section):
    """The codes that a tokenizer gives the hidden tokens: MAM2's appearance target."""

    kind: Literal["codes"]
    tokenizer: TrainedTokenizer
    """Where the tokenizer comes from."""
    frames: Literal["all", "first", "middle"] = "all"
    """Frames of a cube whose codes are predicted, side by side."""
    scale: Positive = 1.0
    """Frames are resized by this before the tokenizer sees them: 0.5 gives each patch of 16 pixels
    one code of a tokenizer of stride 8."""
    cached: bool = False
    """Read the codes that `tats store encode` wrote; views must not change, so this needs
    `data.crop: centre` and `data.flip: 0`."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class LatentsTarget(CodesTarget):
    """The vectors that a tokenizer gives the hidden tokens, regressed."""

    kind: Literal["latents"]  # type: ignore[assignment]


Target = Annotated[
    PixelTarget | DifferenceTarget | CodesTarget | LatentsTarget,
    Field(discriminator="kind"),
]
