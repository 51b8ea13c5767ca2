"""Targets: what the head predicts for hidden tokens. Each kind has its own section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Section, Share
from tatscli.recipe.schema.tokenizer import TrainedTokenizer


class PixelTarget(Section):
    """Pixels of the hidden tokens."""

    kind: Literal["pixels"]
    normalize: bool = True
    """Standardise each token's pixels per channel by their own mean and standard deviation."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class DifferenceTarget(Section):
    """Frame differences of the hidden tokens (MAM2's motion target)."""

    kind: Literal["difference"]
    span: Literal["cube", "clip"] = "cube"
    """`cube`: differences between the frames of a token. `clip`: from each frame of the token to a
    later frame of the clip, which may lie outside the token."""
    gaps: Annotated[list[Count], Field(min_length=1)] = [1]
    """Distances in frames; with several, all are predicted, concatenated."""
    normalize: bool = True
    """Standardise each token's differences by their own mean and standard deviation."""
    floor: Positive = 0.02
    """Lower bound on the standard deviation used for normalising (of pixels in [0, 1]), so that
    noise in static tokens is not amplified. Our choice."""
    weight: Positive = 1.0
    """Weight of this target in the loss; MAM2's lambda."""


class CodesTarget(Section):
    """Tokenizer codes of the hidden tokens (MAM2's appearance target)."""

    kind: Literal["codes"]
    tokenizer: TrainedTokenizer
    """The trained tokenizer."""
    frames: Literal["all", "first", "middle"] = "all"
    """Which frames of a token have their codes predicted; with several, all are concatenated."""
    scale: Positive = 1.0
    """Resize frames by this factor for the tokenizer: 0.5 gives each 16-pixel patch one code of a
    tokenizer with stride 8."""
    cached: bool = False
    """Read codes precomputed by `tats store encode`. They are of one fixed view, so this needs
    `data.crop: centre` and `data.flip: 0`."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class LatentsTarget(CodesTarget):
    """Tokenizer latents of the hidden tokens."""

    kind: Literal["latents"]  # type: ignore[assignment]
    loss: Literal["mse", "cross_entropy"] = "mse"
    """`mse`: regression. `cross_entropy`: classify the quantisation level of each latent dimension,
    for tokenizers with FSQ (`tokenizer.kind: fsq` or `adaptive`). Our choice."""


class HogTarget(Section):
    """Histograms of oriented gradients of the hidden tokens (MaskFeat, arXiv 2112.09133)."""

    kind: Literal["hog"]
    cell: Count = 8
    """Cell size in pixels; must divide `model.patch`. MaskFeat's value."""
    bins: Count = 9
    """Number of orientation bins over 180 degrees; MaskFeat's value."""
    frames: Literal["middle", "all"] = "middle"
    """Frames of the token to describe: the middle one (the later of two), or all."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class MotionTarget(Section):
    """Motion (`data.motion`) at the hidden tokens: x and y for each frame of the token."""

    kind: Literal["motion"]
    scale: Literal["clip", "patch", "none"] = "clip"
    """Normalisation. `clip`: by the RMS length of the clip's known vectors. `patch`: by
    the patch size. `none`: pixels of the input. Our choice."""
    floor: Positive = 1.0
    """Lower bound in pixels on the divisor of `scale: clip`, so that noise in static clips is not
    amplified. Our choice."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class EmaTarget(Section):
    """Features of an EMA copy of the encoder that sees the whole clip (data2vec, V-JEPA)."""

    kind: Literal["ema"]
    momentum: Share = 0.998
    """EMA momentum at the first step; V-JEPA's value."""
    momentum_end: Share = 1.0
    """EMA momentum at the last step; V-JEPA's value."""
    ramp: Literal["linear", "cosine"] = "linear"
    """How the momentum changes between the two."""
    layers: Count = 1
    """Number of final blocks whose normalised outputs are averaged, as in data2vec."""
    norm: Literal["layer", "final"] = "layer"
    """`layer`: normalise each token to mean 0 and standard deviation 1. `final`: apply the EMA
    encoder's final norm, with its weights."""
    beta: NonNegative = 1.0
    """Smooth L1: differences below this are squared; 0: plain L1, as in V-JEPA."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""

    @model_validator(mode="after")
    def _final_norm_has_one_input(self) -> Self:
        if self.norm == "final" and self.layers > 1:
            raise ValueError(
                f"`norm: final` applies to the last block, and `layers: {self.layers}` averages"
                " several; use `norm: layer`"
            )
        return self


class TeacherTarget(Section):
    """Features of a frozen teacher that sees the whole clip: one of our runs (SALT, arXiv
    2509.24317) or an external network."""

    kind: Literal["teacher"]
    run: str | None = None
    """Run folder or checkpoint whose encoder is the teacher."""
    transformers: str | None = None
    """Local `transformers` folder with a VideoMAE, V-JEPA 2 or DINOv3 model."""
    torchvision: str | None = None
    """Name of a torchvision image or video classifier, such as `resnet50`."""
    weights: str | None = None
    """For `torchvision`: local weights file, .pth or .safetensors."""
    layer: Count | str | None = None
    """Block whose output is used, counted from 1, or for `torchvision` a graph node by name; null:
    the last one, with the final norm."""
    size: Count | tuple[Count, Count] | None = None
    """Resize frames to this height and width for the teacher; null: no resizing."""
    frames: Literal["mean", "first"] = "mean"
    """For image networks: average over the frames of a token, or use the first one."""
    mean: tuple[float, float, float] | None = None
    """RGB mean that the teacher was trained with, of values in [0, 1]; null: from the teacher."""
    std: tuple[Positive, Positive, Positive] | None = None
    """RGB standard deviation that the teacher was trained with; null: from the teacher."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the teacher; its features are compared in fp32."""
    beta: NonNegative = 1.0
    """Smooth L1: differences below this are squared; 0: plain L1."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""

    @property
    def source(self) -> str:
        """Which of the three it is."""
        return next(name for name in _SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [f"`{name}`" for name in _SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) if named else "none of them"
            raise ValueError(
                "a teacher needs exactly one of `run`, `transformers` and `torchvision`, not"
                f" {found}"
            )
        if (self.torchvision is None) != (self.weights is None):
            raise ValueError(
                "`torchvision` needs `weights`, a local file, and nothing else takes them"
            )
        if self.layer is not None and isinstance(self.layer, str) != (self.source == "torchvision"):
            kind = "the name of a node" if self.source == "torchvision" else "the number of a block"
            raise ValueError(f"`layer: {self.layer}` with {named[0]} must be {kind}")
        return self


_SOURCES = ("run", "transformers", "torchvision")


Target = Annotated[
    PixelTarget
    | DifferenceTarget
    | CodesTarget
    | LatentsTarget
    | HogTarget
    | MotionTarget
    | EmaTarget
    | TeacherTarget,
    Field(discriminator="kind"),
]
