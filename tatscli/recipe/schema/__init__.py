"""The typed form of a recipe: frozen pydantic models, unknown keys forbidden.

Every system is a combination of mask, head and targets; the other sections set the data, the
optimiser and the run. Descriptions end up in `recipes/schema.json`, which editors read.
Defaults are VideoMAE's (MCG-NJU/VideoMAE, scripts and run_*.py) unless a description says
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from tatscli.recipe.schema.data import Data, Motion, Sampling
from tatscli.recipe.schema.downstream import (
    Augment,
    ClassHead,
    Evaluate,
    Finetune,
    FinetuneOptim,
    Knn,
    Probe,
)
from tatscli.recipe.schema.learned import AdamaeMask, LearnedMask, TatsMask
from tatscli.recipe.schema.masks import (
    BlockMask,
    EverestMask,
    FixedMask,
    FrameMask,
    FutureMask,
    Mask,
    MgmAdvectMask,
    MgmMask,
    MgmTopkMask,
    MotionBinsMask,
    OneMask,
    RandomMask,
    ScheduleMask,
    SimulatedMask,
    StillMask,
    TubeMask,
)
from tatscli.recipe.schema.model import DecoderHead, Head, Model, RegressorHead
from tatscli.recipe.schema.predict import (
    Predict,
    PredictAll,
    PredictEverest,
    PredictFlow,
    PredictRandom,
    PredictRunningCell,
    PredictTokenizer,
    PredictUniform,
)
from tatscli.recipe.schema.section import Section
from tatscli.recipe.schema.targets import (
    CodesTarget,
    DifferenceTarget,
    EmaTarget,
    HogTarget,
    LatentsTarget,
    MotionTarget,
    PixelTarget,
    Target,
    TeacherTarget,
)
from tatscli.recipe.schema.tokenizer import (
    AdaptiveTokenizer,
    CnnTokenizer,
    DiffusersTokenizer,
    Discriminator,
    FsqTokenizer,
    Perceptual,
    RunTokenizer,
    TamingTokenizer,
    Tokenizer,
    TrainedTokenizer,
    VqTokenizer,
)
from tatscli.recipe.schema.training import Optim, Run, Watch

MOST_TOKENS = 2**24
_OF_MASKED = ("mask", "predict", "head", "targets")


class Recipe(Section):
    """Everything about one training: the masked autoencoder (mask, head, targets) or the tokenizer,
    its data, its optimiser, and how it is fine-tuned and evaluated."""

    model_config = ConfigDict(title="tats recipe")

    data: Data
    tokenizer: Tokenizer | None = None
    """Train a tokenizer instead of a masked autoencoder; `model`, `mask`, `predict`, `head` and
    `targets` are then unused."""
    model: Model = Model()
    mask: Mask = TubeMask(kind="tube")
    predict: Predict = PredictAll()
    head: Head = DecoderHead()
    targets: Annotated[list[Target], Field(min_length=1)] = [PixelTarget(kind="pixels")]
    optim: Optim = Optim()
    run: Run = Run()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        height, width = self.data.view_size
        patch = self.model.patch
        return self.data.frames // self.model.tubelet, height // patch, width // patch

    @property
    def view_sampling(self) -> Sampling:
        """How frames are sampled in evaluation: `evaluate.sampling`, else `finetune.sampling`, else
        `data.sampling`."""
        return self.evaluate.sampling or self.finetune.sampling or self.data.sampling

    @property
    def resolved_predict(self) -> Predict:
        """`predict`, with the settings it inherits from a target filled in."""
        predict = self.predict
        if not isinstance(predict, PredictTokenizer):
            return predict
        given = {"scale": 1.0, "cached": False}
        if predict.tokenizer is None:
            source = next(one for one in self.targets if isinstance(one, CodesTarget))
            given = {key: getattr(source, key) for key in ("tokenizer", *given)}
        missing = {key: value for key, value in given.items() if getattr(predict, key) is None}
        return predict.model_copy(update=missing)

    @model_validator(mode="after")
    def _selection_has_a_tokenizer(self) -> Self:
        if not isinstance(self.predict, PredictTokenizer) or self.predict.tokenizer is not None:
            return self
        if not any(isinstance(target, CodesTarget) for target in self.targets):
            raise ValueError(
                "`predict.kind: tokenizer` needs `predict.tokenizer`, or a target with a tokenizer,"
                " `codes` or `latents`"
            )
        return self

    @model_validator(mode="after")
    def _motion_has_a_direction(self) -> Self:
        guessed = any(target.kind == "motion" for target in self.targets)
        if guessed and self.data.motion.source == "framediff":
            raise ValueError(
                "`data.motion.source: framediff` has no direction, which `kind: motion` targets"
                " predict; use `codec` or `flow`"
            )
        return self

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        data = self.data
        if self.tokenizer is not None:
            stride = self.tokenizer.stride
            if any(side % stride for side in data.view_size):
                size = data.size if isinstance(data.size, int) else list(data.size)
                raise ValueError(
                    f"`data.size: {size}` is not a multiple of `tokenizer.stride: {stride}`"
                )
            return self._codes_of_a_window()
        wholes = [(f"`data.frames: {data.frames}`", data.frames, "tubelet")]
        if isinstance(data.size, int):
            wholes.append((f"`data.size: {data.size}`", data.size, "patch"))
        else:
            for name, side in zip(("height", "width"), data.size, strict=True):
                wholes.append((f"the {name} of `data.size: {list(data.size)}`", side, "patch"))
        for words, whole, key in wholes:
            part = getattr(self.model, key)
            if whole % part:
                raise ValueError(f"{words} is not a multiple of `model.{key}: {part}`")
        tokens = math.prod(self.grid)
        if tokens > MOST_TOKENS:
            raise ValueError(
                f"`data.frames`, `data.size` and `model.patch` make {tokens:,} tokens per clip; at"
                f" most {MOST_TOKENS:,} are possible"
            )
        return self

    def _codes_of_a_window(self) -> Self:
        """Check that a video tokenizer can split a window of `data.frames`."""
        config, frames = self.tokenizer, self.data.frames
        if not isinstance(config, AdaptiveTokenizer):
            return self
        if frames % config.tubelet:
            raise ValueError(
                f"`data.frames: {frames}` is not a multiple of `tokenizer.tubelet:"
                f" {config.tubelet}`"
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_stands_alone(self) -> Self:
        if self.tokenizer is None and "mask" not in self.model_fields_set:
            raise ValueError("`mask` is missing")
        fields = type(self).model_fields
        other = [key for key in _OF_MASKED if getattr(self, key) != fields[key].default]
        if self.tokenizer is not None and other:
            raise ValueError(
                f"`tokenizer` and `{other[0]}` cannot be combined: a recipe trains either a"
                " tokenizer or a masked autoencoder; to use a trained tokenizer, name its folder in"
                " `targets`"
            )
        return self

    @model_validator(mode="after")
    def _tokenizer_is_not_watched(self) -> Self:
        if self.tokenizer is not None and self.run.watch is not None:
            raise ValueError(
                "`run.watch` only works for masked autoencoders, and this recipe trains a"
                " tokenizer; use `tats evaluate RUN` instead"
            )
        return self

    @model_validator(mode="after")
    def _discriminator_has_room(self) -> Self:
        judge = None if self.tokenizer is None else self.tokenizer.discriminator
        if judge is not None and min(self.data.view_size) < 3 * 2**judge.layers:
            raise ValueError(
                f"`tokenizer.discriminator.layers: {judge.layers}` needs images of at least"
                f" {3 * 2**judge.layers} pixels a side, and `data.size` gives"
                f" {min(self.data.view_size)}"
            )
        return self

    @model_validator(mode="after")
    def _cached_codes_have_one_view(self) -> Self:
        readers: dict[str, Sequence[Section]] = {
            "`cached: true` of a target": self.targets,
            "`predict.cached: true`": [self.resolved_predict],
        }
        for name, sections in readers.items():
            cached = any(getattr(one, "cached", False) for one in sections)
            if cached and (self.data.crop != "centre" or self.data.flip):
                raise ValueError(
                    f"{name} reads precomputed codes of one fixed view of each frame:"
                    " it needs `data.crop: centre` and `data.flip: 0`"
                )
        return self
