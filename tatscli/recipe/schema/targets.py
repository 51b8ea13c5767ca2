"""Targets: what the guesses are compared with. Each kind has a section of its own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Section, Share
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
    """The vectors that a tokenizer gives the hidden tokens."""

    kind: Literal["latents"]  # type: ignore[assignment]
    loss: Literal["mse", "cross_entropy"] = "mse"
    """`mse` regresses the vectors. `cross_entropy` tells the level of each of their values, where
    the codes are the cells of a grid (`tokenizer.kind: fsq` or `adaptive`). Ours."""


class HogTarget(Section):
    """Histograms of oriented gradients of the hidden tokens (MaskFeat, arXiv 2112.09133)."""

    kind: Literal["hog"]
    cell: Count = 8
    """Height and width of a cell in pixels; divides `model.patch`. MaskFeat's."""
    bins: Count = 9
    """Orientations of a histogram, equal parts of 180 degrees; MaskFeat's."""
    frames: Literal["middle", "all"] = "middle"
    """Frames of the cube that are described: the middle one (the later of two), or every one."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class MotionTarget(Section):
    """The motion of `data.motion` at the hidden tokens: x and y for each frame of the cube."""

    kind: Literal["motion"]
    scale: Literal["clip", "patch", "none"] = "clip"
    """`clip` divides by the root mean square length of the clip's known vectors, `patch` by the
    side of a token, `none` leaves pixels of the view. Ours."""
    floor: Positive = 1.0
    """Least length in pixels that `scale: clip` divides by, so that noise of still clips is not
    blown up. Ours."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


class EmaTarget(Section):
    """Features that the encoder's own moving average gives the hidden tokens, seeing the whole clip
    (data2vec, V-JEPA)."""

    kind: Literal["ema"]
    momentum: Share = 0.998
    """Share of the slow encoder that an optimiser step leaves as it is, in the first step;
    V-JEPA's."""
    momentum_end: Share = 1.0
    """The same in the last step of the training; V-JEPA's."""
    ramp: Literal["linear", "cosine"] = "linear"
    """How the momentum goes from the one to the other."""
    layers: Count = 1
    """Last blocks whose outputs are averaged, each normalised, as data2vec does."""
    norm: Literal["layer", "final"] = "layer"
    """`layer` gives each token mean 0 and deviation 1; `final` takes the slow encoder's own final
    norm, with its weights."""
    beta: NonNegative = 1.0
    """Differences below this count squared, others plainly (smooth L1); 0 is L1, V-JEPA's."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""

    @model_validator(mode="after")
    def _final_norm_has_one_input(self) -> Self:
        if self.norm == "final" and self.layers > 1:
            raise ValueError(
                f"`norm: final` is that of the last block, and `layers: {self.layers}` averages"
                " several; use `norm: layer`"
            )
        return self


class TeacherTarget(Section):
    """Features that a frozen network gives the hidden tokens, seeing the whole clip: one of our
    runs (SALT, arXiv 2509.24317), or a network from elsewhere."""

    kind: Literal["teacher"]
    run: str | None = None
    """A run folder or checkpoint of ours, whose encoder teaches."""
    transformers: str | None = None
    """A local folder of the `transformers` library with a VideoMAE, V-JEPA 2 or DINOv3."""
    torchvision: str | None = None
    """A classifier of torchvision by name, for pictures or videos, such as `resnet50`."""
    weights: str | None = None
    """For `torchvision`: a local file with its weights, .pth or .safetensors."""
    layer: Count | str | None = None
    """Block, counted from 1, whose output is taken, or for `torchvision` a node of its graph; null
    is the last one, with its final norm."""
    size: Count | tuple[Count, Count] | None = None
    """Height and width to which frames are resized for the teacher; null leaves them."""
    frames: Literal["mean", "first"] = "mean"
    """For networks that see one picture: average over the frames of a cube, or the first one."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue in [0, 1] that it was trained with; null is its own."""
    std: tuple[Positive, Positive, Positive] | None = None
    """Deviation of red, green and blue that it was trained with; null is its own."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the teacher computes in; its features are compared in fp32."""
    beta: NonNegative = 1.0
    """Differences below this count squared, others plainly (smooth L1); 0 is L1."""
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
            found = f"{' and '.join(named)} are given" if named else "none is"
            raise ValueError(
                f"a teacher needs one of `run`, `transformers` and `torchvision`; {found}"
            )
        if (self.torchvision is None) != (self.weights is None):
            raise ValueError("`torchvision` and `weights`, a local file, belong together")
        if self.layer is not None and isinstance(self.layer, str) != (self.source == "torchvision"):
            kind = "a node by its name" if self.source == "torchvision" else "a block by its number"
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
