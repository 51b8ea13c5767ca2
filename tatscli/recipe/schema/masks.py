"""Masks: which tokens are shown. Each kind has a section of its own."""

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
    """Hidden tokens drawn anywhere in space and time."""

    kind: Literal["random"]
    ratio: Ratio = 0.9
    """Share of tokens hidden."""
    rounding: Literal["shown", "hidden"] = "shown"
    """Which count is rounded down: `shown`, int(tokens x (1 - ratio)), as the learned masks do, so
    that all show equally many (156 of 1,568 at 0.9); `hidden`, int(tokens x ratio), as AdaMAE's own
    random masks do (157 shown)."""


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


class FutureMask(Section):
    """The first slices shown whole, and of the later ones a small share (SiamMAE, arXiv 2305.14344;
    RVM, arXiv 2512.13684)."""

    kind: Literal["future"]
    ratio: Ratio = 0.95
    """Share of the tokens of the later slices hidden; SiamMAE's and RVM's."""
    past: Count = 1
    """Slices at the start that are shown whole."""
    gap: Annotated[int, Field(ge=0)] = 0
    """Slices after those that take no part: neither shown nor predicted."""


class StillMask(Section):
    """Hides the tokens that move least, but for those of the first slice (after Run-Length
    Tokenization, arXiv 2411.05222)."""

    kind: Literal["still"]
    ratio: Ratio = 0.5
    """Share of tokens hidden; of RLT, which has a threshold, none is published."""


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
"""Every mask but the schedule, which goes from one of them to another."""


class _OrName:
    """Lets a section be written as its kind alone: `to: mgm` is `to: {kind: mgm}`."""

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
    """One mask at first, another in the end, and in between more and more of the second: easy
    first, as CL-MAE (arXiv 2308.16572) and the warm-up of TATS have it."""

    kind: Literal["schedule"]
    ratio: Ratio = 0.9
    """Share hidden, in both masks; they take no `ratio` of their own."""
    from_: Annotated[OneMask, _OrName()] = Field(RandomMask(kind="random"), alias="from")
    """The mask of the first steps: its section, or its kind alone."""
    to: Annotated[OneMask, _OrName()] = MgmMask(kind="mgm")
    """The mask of the last steps: its section, or its kind alone."""
    over: Factor = 0.5
    """First share of the training, in which the share of steps that use `to` rises from 0 to 1."""

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
                    f"`{name}.ratio: {one.ratio:g}` differs from the schedule's own, `ratio:"
                    f" {self.ratio:g}`, which is that of both masks; leave it out"
                )
        learned = [one.kind for one in sides.values() if isinstance(one, LearnedMask)]
        if len(learned) > 1:
            raise ValueError(
                f"`from: {learned[0]}` and `to: {learned[1]}` both learn; one of them may"
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
