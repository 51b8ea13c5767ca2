"""What a pretrained encoder is used for: fine-tuning and evaluation."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tatscli.recipe.schema.data import Sampling
from tatscli.recipe.schema.masks import FixedMask
from tatscli.recipe.schema.section import (
    Count,
    Factor,
    Momentum,
    NonNegative,
    Positive,
    Ratio,
    Section,
    Share,
)
from tatscli.recipe.schema.training import Optim


class Augment(Section):
    """Regularisation of fine-tuning."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of the random resized crop."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect of the random resized crop, width by height, relative to that of the view: 1 keeps
    pixels square."""
    flip: Share = 0.5
    """Probability of a horizontal flip; 0 for data where left and right matter (SSv2)."""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 7
    """RandAugment magnitude on timm's scale of 0 to 10; 0 turns it off."""
    rand_augment_ops: Count = 4
    """RandAugment operations per clip."""
    rand_augment_form: Literal["torchvision", "videomae"] = "torchvision"
    """`torchvision`: its 14 operations on the crop, bilinear. `videomae`: timm's 15 operations on
    whole pictures before the crop, bicubic, as VideoMAE's code has them: about 3.5 times the
    time, for a stored picture has more pixels than the crop."""
    erasing: Share = 0.25
    """Probability of erasing a random box, filled with noise."""
    mixup: NonNegative = 0.8
    """Mixup's Beta parameter; 0 turns it off."""
    cutmix: NonNegative = 1.0
    """CutMix's Beta parameter; 0 turns it off."""
    mix_probability: Share = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch: Share = 0.5
    """Probability of CutMix where both are on."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target spread over all classes."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for key, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if low > high:
                raise ValueError(f"`{key}: [{low:g}, {high:g}]` must go from low to high")
        return self


class FinetuneOptim(Optim):
    """AdamW of fine-tuning: the same keys with other defaults: naming one keeps the rest."""

    epochs: Count = 100
    """Passes over the data."""
    total_batch: Count = 512
    """Videos per optimiser step over all devices, each giving `repeats` views."""
    batch_per_device: Count = 8
    """Videos per forward pass on one device."""
    base_lr: Positive = 1e-3
    """Peak learning rate per 256 videos."""
    min_lr: NonNegative = 1e-6
    """Last learning rate per 256 videos."""
    warmup_lr: NonNegative = 0.0
    """First learning rate per 256 videos. VideoMAE's scripts name 1e-6 or 1e-8, which its scheduler
    never receives: its warm-up starts at 0."""
    warmup_epochs: NonNegative = 5
    """Passes with a linearly rising learning rate; at most `epochs`."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW betas."""
    layer_decay: Factor = 0.75
    """Learning-rate factor per block from the head down."""


class ClassHead(Section):
    """From the tokens of a clip to the scores of its classes."""

    pool: Literal["mean", "attention", "cls"] = "mean"
    """What the classifier reads: the mean of all tokens (VideoMAE's form), what a few learned
    queries find among them, or one learned token that goes through all blocks beside the others.
    The encoder is pretrained without such a token: it is new, as the classifier is."""
    norm: Literal["layer", "batch"] = "layer"
    """What comes before the linear layer: LayerNorm (VideoMAE's form), or LayerNorm and then
    BatchNorm without weights, which takes out what all clips have in common. With `batch` set
    `head_scale: 1`."""
    queries: Annotated[int, Field(ge=1, le=32)] = 8
    """Learned queries of `pool: attention`; they share the encoder's width, so it must be a
    multiple."""


def _read_weights(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read `class_weights`, and say in one sentence what they may be."""
    try:
        return read(value)
    except ValidationError:
        raise PydanticCustomError(
            "class_weights",
            "Input should be `balanced`, or weights above 0 by the names of classes, such as"
            " `{jump: 3}`",
        ) from None


class Finetune(Section):
    """Action recognition on top of the pretrained encoder."""

    split: str = "train"
    """Part of the store to train on."""
    val_split: str | None = "val"
    """Part scored after every `val_every` passes to pick `best`; null scores nothing."""
    val_share: Ratio | None = None
    """Share of the training videos to hold out as `val_split`, of each class alike and always the
    same ones, where the store has no such split: as `tats prepare --val-share`, also for `tats
    evaluate`. A store without splits is divided whole. null holds out none."""
    val_group: str | None = None
    """With `val_share`: a regular expression; videos in whose paths it finds the same text, such as
    `(person\\d+)`, stay together. null: the segments of a file stay together."""
    val_every: Count = 1
    """Passes between two scorings of `val_split`."""
    sampling: Sampling | None = None
    """How frames are drawn; null is `data.sampling`."""
    repeats: Count = 1
    """Views drawn from each video of a batch (repeated augmentation); they do not enter the
    learning-rate rule."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth of the last block, rising linearly from 0."""
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the classifier."""
    head: ClassHead = ClassHead()
    head_scale: Positive = 0.001
    """Factor on the classifier's initial weights, which have a deviation of 0.02."""
    heads: Annotated[list[str], Field(min_length=1)] | None = None
    """Groups of the store's classes, such as `[verb, noun]` of EPIC-KITCHENS-100: the classifier
    has one linear layer for each, their losses are added, and a class scores the product of what
    its members score. null is one linear layer over the classes."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, Positive] | None, WrapValidator(_read_weights)
    ] = None
    """Weights of the classes in the loss, as `weight` of torch's cross_entropy with soft labels.
    `balanced`: in inverse proportion to their training videos, 1 on the average video. By name:
    `{jump: 3}`, where the others have 1; with `heads` a name is `verb/take`. null: no
    weights."""
    freeze: Literal["none", "encoder"] | Count = "none"
    """What keeps its pretrained weights: `none`, the `encoder` (only the head is trained), or a
    number N: the patch embedding and the first N blocks."""
    ema: Ratio | None = None
    """Share of itself that the moving average of the weights keeps at every step, such as 0.9999.
    The average is what is validated, saved as the model and evaluated; the first steps move it
    faster. null: no average."""
    auxiliary: Ratio | None = None
    """Train masked modelling beside classification: its share of the loss, by the recipe's `mask`,
    `predict`, `head` and `targets`, on the same clips. 0.9 is published for small data sets; null
    trains classification alone."""
    drop: FixedMask | None = None
    """Leave out the tokens that this mask hides: the encoder gets the others alone. It needs a
    `ratio`; LVMAE's is `{kind: tube, ratio: 0.2}` at 128 frames. Not with `auxiliary`. Scoring
    `val_split` goes by `evaluate.drop`."""
    augment: Augment = Augment()
    optim: FinetuneOptim = FinetuneOptim()

    @model_validator(mode="after")
    def _held_out_makes_sense(self) -> Self:
        if self.val_group is not None:
            if self.val_share is None:
                raise ValueError("`val_group` needs `val_share`, the share to hold out")
            try:
                re.compile(self.val_group)
            except re.error as error:
                raise ValueError(
                    f"`val_group: {self.val_group}` is not a regular expression: {error}"
                ) from None
        if self.val_share is not None and self.val_split is None:
            raise ValueError("`val_share` needs `val_split`, the name of what it holds out")
        return self

    @model_validator(mode="after")
    def _heads_differ(self) -> Self:
        if self.heads is not None and len(set(self.heads)) < len(self.heads):
            raise ValueError(f"`heads: [{', '.join(self.heads)}]` names a group twice")
        return self

    @model_validator(mode="after")
    def _something_is_left_to_model(self) -> Self:
        if self.freeze == "encoder" and self.auxiliary is not None:
            raise ValueError(
                f"`freeze: encoder` and `auxiliary: {self.auxiliary:g}` exclude each other: masked"
                " modelling beside a frozen encoder would train a head that is thrown away"
            )
        return self

    @model_validator(mode="after")
    def _drop_fits(self) -> Self:
        _refuse_no_ratio(self.drop)
        if self.drop is not None and self.auxiliary is not None:
            raise ValueError(
                f"`drop` and `auxiliary: {self.auxiliary:g}` exclude each other: beside masked"
                " modelling the classifier sees whole clips"
            )
        return self


class Knn(Section):
    """Nearest neighbours on frozen features."""

    pool: Literal["clip", "slice", "token"] = "clip"
    """Tokens that are averaged: all of the clip, those of each slice, or none; what is left is
    joined to one feature, so that `slice` keeps when, `token` also where."""
    whiten: Count | None = None
    """Principal components that are compared, each brought to the same variance; null compares
    features as they are. For videos that differ by little of what they show."""

    split: str = "train"
    """Part of the store that holds the neighbours."""
    neighbours: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """Softmax temperature of the cosine similarities that weigh the votes."""


class Probe(Section):
    """A small classifier on frozen features: `--protocol linear` and `--protocol attentive`."""

    split: str = "train"
    """Part of the store it is trained on."""
    views: Count = 1
    """Views of each video whose features it is trained on: the middle of the video, and further
    ones drawn as `finetune.augment` crops and mirrors."""
    held_out: Ratio = 0.2
    """Share of those videos, of each class alike, that learning rate and weight decay are chosen
    on; what was chosen is then trained again on all. Nothing is held out where there is one
    choice."""
    epochs: Count = 90
    """Passes over the videos, each by one of its views."""
    batch: Count = 256
    """Videos in a step, at most."""
    rates: Annotated[list[Positive], Field(min_length=1)] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    """Peak learning rates to choose from; they are not scaled."""
    decays: Annotated[list[NonNegative], Field(min_length=1)] = [0.01, 0.4]
    """Weight decays to choose from, each with every rate."""
    form: Literal["efficient", "vjepa"] = "efficient"
    """How an attentive probe pools: one cross-attention of a few learned queries (efficient
    probing), or V-JEPA 2's four blocks, three of self-attention and one of cross-attention by one
    query."""
    queries: Annotated[int, Field(ge=1, le=32)] = 8
    """Learned queries of `form: efficient`; they share the encoder's width, so it must be a
    multiple."""
    precision: Literal["float16", "float32"] = "float16"
    """Numbers that tokens wait as, between encoder and attentive probe; a linear probe's features
    are few and wait as float32."""
    cache_gb: Positive = 8.0
    """Memory for waiting features, in GB, in each process. More than that is refused."""

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        for key, values in (("rates", self.rates), ("decays", self.decays)):
            if len(set(values)) < len(values):
                raise ValueError(f"`{key}: {values}` names a value twice")
        return self


def _refuse_no_ratio(drop: FixedMask | None) -> None:
    """Raise ValueError if the share of tokens to leave out is a mask's default, pretraining's."""
    if drop is not None and "ratio" not in drop.model_fields_set:
        raise ValueError(
            f"`drop` needs a `ratio`, the share of tokens left out, such as"
            f" `{{kind: {drop.kind}, ratio: 0.2}}`"
        )


class Evaluate(Section):
    """Views per video and where to look."""

    split: str = "val"
    """Part of the store that is scored."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Blocks of the encoder that frozen features have gone through; 0 is the patch embeddings with
    their positions. null is all, and the last norm, which no other layer has. For `knn`, `linear`
    and `attentive`."""
    shots: Count | None = None
    """Labelled videos of each class that `knn`, `linear` and `attentive` may use, drawn by
    `run.seed`; null is all. Those of fewer shots are among those of more."""
    segments: Count = 1
    """Clips along time."""
    crops: Literal[1, 3] = 1
    """Crops with the aspect of the view, along the side of the frame that has room: the centre, or
    both ends as well."""
    sampling: Sampling | None = None
    """How frames are drawn; null is fine-tuning's."""
    drop: FixedMask | None = None
    """Leave out the tokens of every view that this mask hides, drawn by `run.seed`, video and view.
    It needs a `ratio`. Here and in scoring `finetune.val_split`; with frozen features also of the
    training videos."""
    durations: Annotated[list[NonNegative], Field(min_length=1)] | None = None
    """Seconds at which videos are divided, ascending, such as `[0, 4, 8, 16, 32]`: accuracy is
    also told for those of each length. null divides none."""
    batch_per_device: Count = 16
    """Views per forward pass."""
    knn: Knn = Knn()
    probe: Probe = Probe()

    @model_validator(mode="after")
    def _drop_has_a_ratio(self) -> Self:
        _refuse_no_ratio(self.drop)
        return self

    @model_validator(mode="after")
    def _durations_ascend(self) -> Self:
        edges = self.durations or []
        if any(before >= after for before, after in pairwise(edges)):
            raise ValueError(f"`durations: {edges}` must ascend")
        return self
