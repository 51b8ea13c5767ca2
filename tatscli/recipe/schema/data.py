"""How clips are made: frame sampling, crops and motion."""

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
    """Which frames of a video make up a clip."""

    mode: Literal["dense", "uniform"] = "dense"
    """`dense`: a window of frames x stride source frames at a random start. `uniform`: one frame
    from each of `data.frames` equal segments."""
    stride: Count | None = None
    """Sampling stride in source frames; dense only."""
    fps: Positive | None = None
    """Frames per second of the clip, by timestamps, instead of `stride`; dense only. For videos of
    different or variable frame rates."""
    short: Literal["repeat_last", "loop", "error"] = "repeat_last"
    """What to do with videos shorter than the window: repeat the last frame, loop, or refuse to
    start."""
    clips: Count | None = None
    """Train on this many fixed clips per video, the same ones that evaluation takes with as many
    segments; null: random clips. Codes of video tokenizers can only be cached for fixed clips."""
    indices: Literal["even", "videomae"] = "even"
    """`even`: exact strides and segments, up to the last frame. `videomae`: the indices of
    VideoMAE's code, which differ by stage: fine-tuning spaces the frames of a dense window evenly
    from first to last (0, 4, 8, 12, 17, ..., 63), and its segments of int(length / frames) frames
    never reach the end of the video. Short videos then follow its rules instead of `short`."""

    @model_validator(mode="after")
    def _videomae_has_rules_of_its_own(self) -> Self:
        if self.indices == "videomae" and self.fps is not None:
            raise ValueError("`indices: videomae` counts frames: set `stride`, not `fps`")
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
                "`mode: dense` needs `stride`, the sampling stride in source frames, or `fps`"
            )
        if self.mode == "dense" and len(paces) > 1:
            raise ValueError("`stride` and `fps` cannot be combined; set one of them to null")
        if self.mode == "uniform" and paces:
            raise ValueError(f"`mode: uniform` takes no `{paces[0]}`: it covers the whole video")
        return self


class Motion(Section):
    """The motion that masks and `predict` follow."""

    source: Literal["codec", "framediff", "flow"] = "codec"
    """`codec`: the motion vectors in the store. `framediff`: frame differences, which have no
    direction. `flow`: precomputed optical flow."""
    path: str | None = None
    """For `flow`: a .safetensors file, or a folder of them, with a tensor `<id>/motion` per video,
    in the shape and units of the store's motion."""
    camera: Literal["none", "median", "affine"] = "none"
    """Camera motion to subtract: `median` removes pans, `affine` also zoom and roll."""
    scaling: Literal["auto", "none", "robust"] = "auto"
    """`robust` scales the motion of each frame of a clip to a common magnitude. `auto` does so for
    codec vectors that were stored as they are (`tats prepare --motion native`) and may span several
    frames."""
    fallback: Literal["tube", "framediff", "error"] = "tube"
    """For clips without motion: a tube mask of the same ratio (`predict` takes random tokens),
    `framediff`, or an error."""

    @model_validator(mode="after")
    def _flow_has_a_path(self) -> Self:
        if (self.source == "flow") != (self.path is not None):
            raise ValueError("`source: flow` needs a `path`, and no other source takes one")
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
    """Clips as the model sees them, for all stages; fine-tuning and evaluation may have a sampling
    of their own."""

    store: str
    """Folder written by `tats prepare`."""
    split: str | None = None
    """Split to pretrain on; null: all videos."""
    shots: Count | None = None
    """Few-shot fine-tuning: training videos per class, drawn from `finetune.split` by `run.seed`;
    smaller draws are subsets of larger ones. null: all. Pretraining is unaffected; `evaluate.shots`
    draws the same videos for frozen features."""
    frames: Count = 16
    """Frames in a clip."""
    size: Annotated[Count | tuple[Count, Count], WrapValidator(_read_size)] = 224
    """Input height and width in pixels: one number, or `[height, width]`."""
    sampling: Sampling = Sampling(stride=4)
    """Frame sampling of pretraining."""
    crop: Literal["corners", "centre"] = "corners"
    """Crop in pretraining. `corners`: VideoMAE's multi-scale corner crop. `centre`: the largest
    centre crop, as in evaluation."""
    resize: Literal["antialias", "videomae"] = "antialias"
    """How crops are resized. `antialias`: bilinear with antialiasing, in every stage. `videomae`:
    the same in pretraining, but bilinear without antialiasing in fine-tuning and evaluation, as in
    VideoMAE's code."""
    resize_on: Literal["auto", "host", "device"] = "auto"
    """Where training crops are resized: in the loader (`host`), or on the device after the copy.
    `auto`: the device on CUDA. The loader still resizes clips that are augmented after the crop
    (torchvision-style RandAugment, random erasing, frame differences) and crops with more than four
    times the pixels of the input. Results differ by one grey level at most."""
    crop_scales: Annotated[list[Factor], Field(min_length=1)] = [1, 0.875, 0.75, 0.66]
    """For `crop: corners`: crop sides relative to the largest crop with the input's aspect
    ratio."""
    flip: Share = 0.0
    """Horizontal flip probability in pretraining; VideoMAE uses 0."""
    repeats: Count = 1
    """Crops per sampled clip in pretraining (repeated sampling); the learning rate is not scaled by
    them."""
    motion: Motion = Motion()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB mean for normalisation, of values in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """RGB standard deviation for normalisation, of values in [0, 1]."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Data loader processes; `auto`: one per core, shared by the ranks of this machine, at most
    8."""
    timeout: Positive = 600.0
    """Seconds a loader worker may spend on one clip before the run stops with an error; it warns
    after a minute."""
    cache: Literal["auto", "ram", "none"] = "auto"
    """Keep decoded frames in memory, so that JPEGs are decoded once and not in every epoch. `auto`:
    if all of them fit in `cache_gb` and in half of the free memory. `ram`: always, or stop if they
    do not fit. `none`: never."""
    cache_gb: Positive = 2.0
    """Limit on the decoded frames in memory, in GB (10^9 bytes), over all ranks of a machine."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """Where pretraining decodes JPEGs: in the loader, or on the GPU, one batch per call, with
    `torchcodec` (extra `gpu-decode`). With `gpu`, decoded frames are not cached, and a file that
    cannot be decoded stops the run."""
    max_bad_share: Share = 0.01
    """Maximum fraction of unreadable clips that training replaces by others before it stops."""

    @model_validator(mode="after")
    def _a_gpu_keeps_no_frames(self) -> Self:
        if self.decode == "gpu" and self.cache == "ram":
            raise ValueError(
                "`decode: gpu` caches no decoded frames, so `cache: ram` would have no effect;"
                " set `cache` to `auto` or `none`"
            )
        return self

    @property
    def antialias_labelled(self) -> bool:
        """Whether crops of fine-tuning and evaluation are resized with antialiasing."""
        return self.resize == "antialias"

    @property
    def view_size(self) -> tuple[int, int]:
        """Input height and width in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
