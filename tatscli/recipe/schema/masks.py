"""Masks: which tokens are shown. Each kind has a section of its own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.learned import AdamaeMask, TatsMask
from tatscli.recipe.schema.section import Count, NonNegative, Positive, Ratio, Section, Share


class RandomMask(Section):
    """Hidden tokens drawn anywhere in space and time."""

    kind: Literal["random"]
    ratio: Ratio = 0.9
    """Share of tokens hidden."""


class TubeMask(Section):
    """The same hidden sites in every slice (VideoMAE)."""

    kind: Literal["tube"]
    ratio: Ratio = 0.9
    """Share of sites hidden; int(ratio x sites), as VideoMAE rounds."""


class FrameMask(Section):
    """Whole slices hidden (VideoMAE's ablation)."""

    kind: Literal["frame"]
    ratio: Ratio = 0.9
    """Share of slices hidden; int(ratio x slices)."""


class BlockMask(Section):
    """A rectangle that stands still: the control of `mgm` without any motion."""

    kind: Literal["block"]
    ratio: Ratio = 0.75
    """Share of sites hidden in every slice; int(ratio x sites)."""
    blocks: Count = 1
    """Rectangles that share the hidden area."""
    aspect: tuple[Positive, Positive] = (0.5, 2.0)
    """Range of a rectangle's width by height, drawn log-uniformly."""
    noise: NonNegative = 0.1
    """How many sites deep the rim of the mask is ragged."""

    @model_validator(mode="after")
    def _aspect_ascends(self) -> Self:
        low, high = self.aspect
        if low > high:
            raise ValueError(f"`aspect: [{low:g}, {high:g}]` must go from low to high")
        return self


class SimulatedMask(BlockMask):
    """Rectangles on smooth random paths: moving, but not with the content."""

    kind: Literal["simulated"]  # type: ignore[assignment]


class MgmMask(BlockMask):
    """Rectangles that follow the content along codec motion vectors.

    Of MGM (Fan et al. 2023, arXiv 2308.12962) the idea and the ratio are published; base slice,
    shape, tracking and ranking are our choices.
    """

    kind: Literal["mgm"]  # type: ignore[assignment]
    base: Literal["energy", "middle", "random"] = "energy"
    """Frame the rectangles are placed in: that with most motion energy, the middle one, or any."""
    centre: Literal["sample", "centroid"] = "sample"
    """Draw centres from where it moves, or take the centroid of the motion."""
    pull: NonNegative = 1.0
    """How many sites beyond the rim the token that moves most is still hidden."""

    @model_validator(mode="after")
    def _one_centroid(self) -> Self:
        if self.centre == "centroid" and self.blocks > 1:
            raise ValueError(
                f"`centre: centroid` is one place, and `blocks: {self.blocks}` need several;"
                " use `sample`"
            )
        return self


class MgmTopkMask(Section):
    """The tokens of every slice that move most."""

    kind: Literal["mgm_topk"]
    ratio: Ratio = 0.75
    """Share of sites hidden in every slice; int(ratio x sites)."""


class MgmAdvectMask(Section):
    """A random mask carried along the vectors: MGMAE (arXiv 2308.10794) with codec motion instead
    of optical flow."""

    kind: Literal["mgm_advect"]
    ratio: Ratio = 0.9
    """Share of sites hidden in every slice; MGMAE's."""
    base: Literal["middle", "energy", "random"] = "middle"
    """Frame in which the mask is drawn; MGMAE's is the middle one."""


class EverestMask(Section):
    """Shows some of the tokens whose patch embedding changes most, predicts the rest of those, and
    drops all others (EVEREST, arXiv 2211.10636)."""

    kind: Literal["everest"]
    ratio: Ratio = 0.9
    """Share of tokens not shown."""
    keep: Ratio = 0.3
    """Share of tokens, those that change most, which are shown or predicted at all."""

    @model_validator(mode="after")
    def _something_is_predicted(self) -> Self:
        if self.keep <= 1 - self.ratio:
            raise ValueError(
                f"`keep: {self.keep:g}` must be more than the share shown, 1 - `ratio`"
                f" = {1 - self.ratio:g}"
            )
        return self


class MotionBinsMask(Section):
    """Shows as much of the moving half of the tokens as of the other (TrackMAE's bins)."""

    kind: Literal["motion_bins"]
    ratio: Ratio = 0.8
    """Share of tokens hidden; TrackMAE's."""
    share: Share = 0.5
    """Share of the visible tokens that comes from the moving half."""


Mask = Annotated[
    RandomMask
    | TubeMask
    | FrameMask
    | BlockMask
    | SimulatedMask
    | MgmMask
    | MgmTopkMask
    | MgmAdvectMask
    | MotionBinsMask
    | EverestMask
    | AdamaeMask
    | TatsMask,
    Field(discriminator="kind"),
]
