"""What clips are made of: which frames, which view of them, whose motion."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tatscli.recipe.schema.section import Count, Factor, Positive, Section, Share


class Sampling(Section):
    """Which frames of a video make a clip."""

    mode: Literal["dense", "uniform"] = "dense"
    """`dense`: one window of frames x stride at a random start. `uniform`: one frame from each of
    equal segments."""
    stride: Count | None = None
    """Source frames between two frames of the clip; dense only."""
    fps: Positive | None = None
    """Frames a second of the clip, by presentation time, instead of `stride`; dense only. For
    videos of different or variable frame rates."""
    short: Literal["repeat_last", "loop", "error"] = "repeat_last"
    """A video shorter than the window: hold its last frame, start again, or stop."""
    clips: Count | None = None
    """Training draws one of so many fixed clips of a video, those that evaluation takes with as
    many segments; null draws anywhere. Codes of tokenizers that look at several frames at once can
    be cached for fixed clips alone."""
    indices: Literal["even", "videomae"] = "even"
    """`even`: exact strides and exact segments, to the last frame. `videomae`: the frames that
    VideoMAE's code takes in each stage. Fine-tuning divides a dense window evenly from its first to
    its last frame (0, 4, 8, 12, 17, ..., 63), and takes segments of int(length / frames), which
    never reach the end of the video; videos shorter than a clip follow its rules instead of
    `short`."""

    @model_validator(mode="after")
    def _videomae_has_rules_of_its_own(self) -> Self:
        if self.indices == "videomae" and self.fps is not None:
            raise ValueError("`indices: videomae` counts frames; it takes `stride`, not `fps`")
        if self.indices == "videomae" and self.short != "repeat_last":
            raise ValueError(
                f"`indices: videomae` has its own rules for short videos, so `short: {self.short}`"
                " would have no effect; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _pace_belongs_to_dense(self) -> Self:
        paces = [name for name in ("stride", "fps") if getattr(self, name) is not None]
        if self.mode == "dense" and not paces:
            raise ValueError(
                "`mode: dense` needs `stride`, the source frames between two frames of the clip,"
                " or `fps`"
            )
        if self.mode == "dense" and len(paces) > 1:
            raise ValueError("`stride` and `fps` exclude each other; set one of them to null")
        if self.mode == "uniform" and paces:
            raise ValueError(f"`mode: uniform` takes no `{paces[0]}`: the whole video is covered")
        return self


class Motion(Section):
    """Where the motion comes from that masks and selections follow."""

    source: Literal["codec", "framediff", "flow"] = "codec"
    """`codec`: the vectors of the store. `framediff`: how much pixels change, which has no
    direction. `flow`: displacements made elsewhere."""
    path: str | None = None
    """For `flow`: a .safetensors file, or a folder of them, with a tensor `<id>/motion` for each
    video, of the shape and in the units of the store's."""
    camera: Literal["none", "median", "affine"] = "none"
    """Model of the camera's own motion that is taken out: a pan, or pan, zoom and roll."""
    scaling: Literal["auto", "none", "robust"] = "auto"
    """`robust` brings the frames of a clip to one scale. `auto` does where codec vectors were taken
    as they are (`tats prepare --motion native`) and may span several frames."""
    fallback: Literal["tube", "framediff", "error"] = "tube"
    """A clip without motion: a tube mask of the same ratio (a selection takes any tokens),
    `framediff`, or stop."""

    @model_validator(mode="after")
    def _flow_has_a_path(self) -> Self:
        if (self.source == "flow") != (self.path is not None):
            raise ValueError("`source: flow` and `path` belong together")
        return self


def _read_size(value: Any, read: ValidatorFunctionWrapHandler) -> int | tuple[int, int]:
    """Read one number or a pair; two equal numbers are one, so that both spellings are equal."""
    try:
        # Strict validation takes a list for a tuple only while it reads JSON itself.
        size = read(tuple(value) if isinstance(value, list) else value)
    except ValidationError:
        raise PydanticCustomError(
            "view_size", "Input should be a whole number of at least 1, or two: [height, width]"
        ) from None
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


class Data(Section):
    """Clips as the model sees them. Used by every stage, except the sampling a stage names
    itself."""

    store: str
    """Folder written by `tats prepare`."""
    split: str | None = None
    """Part of the store to pretrain on; null takes every video."""
    shots: Count | None = None
    """Training videos of each class that fine-tuning uses, drawn from `finetune.split` by
    `run.seed`; those of fewer shots are among those of more. null is all. Pretraining needs no
    labels and takes every video of `data.split`; frozen features have `evaluate.shots`, which draws
    the same videos from the same split."""
    frames: Count = 16
    """Frames in a clip."""
    size: Annotated[Count | tuple[Count, Count], WrapValidator(_read_size)] = 224
    """Height and width of the view in pixels: one number, or `[height, width]`."""
    sampling: Sampling = Sampling(stride=4)
    """How pretraining draws its frames."""
    crop: Literal["corners", "centre"] = "corners"
    """View of pretraining. `corners`: VideoMAE's multi-scale corner crop. `centre`: always the
    largest crop in the middle, as in evaluation."""
    resize: Literal["antialias", "videomae"] = "antialias"
    """How crops are resized. `antialias`: bilinear with antialiasing, in every stage. `videomae`:
    so in pretraining, but plain bilinear, without antialiasing, in fine-tuning and evaluation, as
    VideoMAE's code."""
    crop_scales: Annotated[list[Factor], Field(min_length=1)] = [1, 0.875, 0.75, 0.66]
    """Of `crop: corners`: sides as shares of those of the largest crop with the
    aspect of the view."""
    flip: Share = 0.0
    """Probability of a horizontal flip in pretraining; VideoMAE uses none."""
    repeats: Count = 1
    """Views drawn from each video of a batch in pretraining; they do not enter the learning-rate
    rule."""
    motion: Motion = Motion()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue values in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Deviation of the red, green and blue values in [0, 1]."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes; `auto` is one a core shared by the ranks of this machine, at most 8."""
    timeout: Positive = 600.0
    """Seconds that a loader worker may take over one clip before the run stops and names both;
    after a minute it warns."""
    cache: Literal["auto", "ram", "none"] = "auto"
    """Decoded frames in memory, so that JPEGs are decoded once and not in every pass: `auto` where
    all of them fit in `cache_gb` and in half of the memory that is free, `ram` or stop, `none`
    never."""
    cache_gb: Positive = 2.0
    """GB (10^9 bytes) of decoded frames that the ranks of a machine keep at most, all together."""
    max_bad_share: Share = 0.01
    """Share of unreadable clips that training may replace by their neighbour before it stops."""

    @property
    def antialias_labelled(self) -> bool:
        """Whether crops of fine-tuning and evaluation are resized with antialiasing."""
        return self.resize == "antialias"

    @property
    def view_size(self) -> tuple[int, int]:
        """Height and width of the view in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
