"""Masks: which tokens the encoder sees. Each kind has its own section.

A slice is one time step of the token grid, a position one place in its height x width.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import core_schema

from tatscli.recipe.schema.learned import AdamaeMask, LearnedMask, TatsMask
from tatscli.recipe.schema.section import (
    Count,
    Factor,
    NonNegative,
    Positive,
    Ratio,
    Section,
    Share,
)


class RandomMask(Section):
    """Hides random tokens, anywhere in space and time."""

    kind: Literal["random"]
    ratio: Ratio = 0.9
    """Fraction of tokens to hide."""
    rounding: Literal["shown", "hidden"] = "shown"
    """Which count is rounded down. `shown`: int(tokens x (1 - ratio)) visible tokens, as with the
    learned masks (156 of 1,568 at 0.9). `hidden`: int(tokens x ratio) hidden tokens, as in AdaMAE's
    random masks (157 visible)."""


class TubeMask(Section):
    """Hides the same random positions in every slice (VideoMAE)."""

    kind: Literal["tube"]
    ratio: Ratio = 0.9
    """Fraction of positions to hide, rounded down as in VideoMAE: int(ratio x positions)."""


class FrameMask(Section):
    """Hides whole slices, at random (VideoMAE's ablation)."""

    kind: Literal["frame"]
    ratio: Ratio = 0.9
    """Fraction of slices to hide, rounded down: int(ratio x slices)."""


class BlockMask(Section):
    """Hides a static rectangle: the baseline of `mgm` without motion."""

    kind: Literal["block"]
    ratio: Ratio = 0.75
    """Fraction of positions to hide in every slice, rounded down: int(ratio x positions)."""
    blocks: Count = 1
    """Number of rectangles that share the hidden area."""
    aspect: tuple[Positive, Positive] = (0.5, 2.0)
    """Range of the aspect ratio (width / height), drawn log-uniformly."""
    noise: NonNegative = 0.1
    """Width of the random border of the mask, in tokens."""

    @model_validator(mode="after")
    def _aspect_ascends(self) -> Self:
        low, high = self.aspect
        if low > high:
            raise ValueError(f"`aspect: [{low:g}, {high:g}]` must go from low to high")
        return self


class SimulatedMask(BlockMask):
    """Hides rectangles on smooth random paths, which do not follow the content."""

    kind: Literal["simulated"]  # type: ignore[assignment]


class MgmMask(BlockMask):
    """Hides rectangles that follow the content along codec motion vectors.

    MGM (Fan et al. 2023, arXiv 2308.12962) publishes the idea and the ratio; base frame, shape,
    tracking and ranking are our choices.
    """

    kind: Literal["mgm"]  # type: ignore[assignment]
    base: Literal["energy", "middle", "random"] = "energy"
    """Frame in which the rectangles are placed: the one with the most motion energy, the middle
    one, or a random one."""
    centre: Literal["sample", "centroid"] = "sample"
    """Sample the centres in proportion to motion, or take the centroid of the motion."""
    pull: NonNegative = 1.0
    """How far outside the rectangle the fastest-moving token is still hidden, in tokens."""

    @model_validator(mode="after")
    def _one_centroid(self) -> Self:
        if self.centre == "centroid" and self.blocks > 1:
            raise ValueError(
                f"`centre: centroid` is a single point, and `blocks: {self.blocks}` needs several;"
                " use `sample`"
            )
        return self


class MgmTopkMask(Section):
    """Hides the tokens with the most motion in every slice."""

    kind: Literal["mgm_topk"]
    ratio: Ratio = 0.75
    """Fraction of positions to hide in every slice, rounded down: int(ratio x positions)."""


class MgmAdvectMask(Section):
    """Warps a random mask along the motion: MGMAE (arXiv 2308.10794), with codec motion vectors
    instead of optical flow."""

    kind: Literal["mgm_advect"]
    ratio: Ratio = 0.9
    """Fraction of positions to hide in every slice; MGMAE's value."""
    base: Literal["middle", "energy", "random"] = "middle"
    """Frame in which the mask is drawn: the middle one (MGMAE), the one with the most motion
    energy, or a random one."""


class EverestMask(Section):
    """Keeps only the tokens whose patch embedding changes most over time: some are visible, the
    rest are predicted, all others are dropped (EVEREST, arXiv 2211.10636)."""

    kind: Literal["everest"]
    ratio: Ratio = 0.9
    """Fraction of tokens that are not visible."""
    keep: Ratio = 0.3
    """Fraction of tokens to keep at all, visible or predicted: those that change most."""

    @model_validator(mode="after")
    def _something_is_predicted(self) -> Self:
        if self.keep <= 1 - self.ratio:
            raise ValueError(
                f"`keep: {self.keep:g}` must be more than the visible fraction, 1 - `ratio`"
                f" = {1 - self.ratio:g}"
            )
        return self


class MotionBinsMask(Section):
    """Splits tokens into a high-motion and a low-motion half and samples visible tokens from both
    (TrackMAE's motion bins)."""

    kind: Literal["motion_bins"]
    ratio: Ratio = 0.8
    """Fraction of tokens to hide; TrackMAE's value."""
    share: Share = 0.5
    """Fraction of the visible tokens that comes from the high-motion half."""


class FutureMask(Section):
    """Shows the first slices in full, and only a small fraction of the later ones (SiamMAE, arXiv
    2305.14344; RVM, arXiv 2512.13684)."""

    kind: Literal["future"]
    ratio: Ratio = 0.95
    """Fraction of tokens to hide in the later slices; the value of SiamMAE and RVM."""
    past: Count = 1
    """Number of slices at the start that are fully visible."""
    gap: Annotated[int, Field(ge=0)] = 0
    """Number of slices after those to skip: neither visible nor predicted."""


class StillMask(Section):
    """Hides the tokens that move least, except in the first slice (after Run-Length Tokenization,
    arXiv 2411.05222)."""

    kind: Literal["still"]
    ratio: Ratio = 0.5
    """Fraction of tokens to hide; our choice, as RLT uses a threshold instead."""


Fixed = (
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
    | FutureMask
    | StillMask
)

FixedMask = Annotated[Fixed, Field(discriminator="kind")]
"""A mask that does not learn."""

OneMask = Annotated[Fixed | AdamaeMask | TatsMask, Field(discriminator="kind")]
"""Every mask except the schedule, which switches from one of them to another."""


class _OrName:
    """Allows a section to be given by its kind alone: `to: mgm` for `to: {kind: mgm}`."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        def read(value: Any, section: ValidatorFunctionWrapHandler) -> Any:
            if isinstance(value, str):
                return section({"kind": value})
            if isinstance(value, dict):
                # Strict validation takes a list for a tuple only while it reads JSON itself.
                value = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
            return section(value)

        return core_schema.no_info_wrap_validator_function(read, handler(source))

    def __get_pydantic_json_schema__(
        self, section: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        written = handler(section)
        names = list(written["discriminator"]["mapping"])
        return {"anyOf": [written, {"enum": names, "type": "string"}]}


class ScheduleMask(Section):
    """Curriculum from one mask to another: the fraction of steps that use the second grows from 0
    to 1 (cf. CL-MAE, arXiv 2308.16572)."""

    kind: Literal["schedule"]
    ratio: Ratio = 0.9
    """Fraction of tokens to hide, for both masks; they have no `ratio` of their own."""
    from_: Annotated[OneMask, _OrName()] = Field(RandomMask(kind="random"), alias="from")
    """First mask: a section, or just its kind."""
    to: Annotated[OneMask, _OrName()] = MgmMask(kind="mgm")
    """Second mask: a section, or just its kind."""
    over: Factor = 0.5
    """Fraction of the training over which the fraction of steps that use `to` grows from 0 to 1."""

    @property
    def both(self) -> tuple[OneMask, OneMask]:
        """The two masks, with the ratio of the schedule."""
        first, second = (
            type(one).model_validate(one.model_dump() | {"ratio": self.ratio})
            for one in (self.from_, self.to)
        )
        return first, second

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        sides = {"from": self.from_, "to": self.to}
        for name, one in sides.items():
            if "ratio" in one.model_fields_set and one.ratio != self.ratio:
                raise ValueError(
                    f"`{name}.ratio: {one.ratio:g}` differs from the schedule's `ratio:"
                    f" {self.ratio:g}`, which applies to both masks; leave it out"
                )
        learned = [one.kind for one in sides.values() if isinstance(one, LearnedMask)]
        if len(learned) > 1:
            raise ValueError(
                f"`from: {learned[0]}` and `to: {learned[1]}` are both learned; only one may be"
            )
        try:
            _ = self.both
        except ValidationError as error:  # such as `keep` of everest, which depends on the ratio
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write what reading takes: the key `from`, and no ratio that was not given."""
        written = {"from" if key == "from_" else key: value for key, value in write(self).items()}
        for name, one in (("from", self.from_), ("to", self.to)):
            if name in written and "ratio" not in one.model_fields_set:
                written[name] = {k: v for k, v in written[name].items() if k != "ratio"}
        return written


Mask = Annotated[
    OneMask | ScheduleMask,
    Field(discriminator="kind"),
]
