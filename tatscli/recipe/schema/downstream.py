"""Fine-tuning and evaluation of a pretrained encoder."""

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
    """Augmentation and regularisation in fine-tuning."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area range of the random resized crop."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect ratio range of the random resized crop, relative to the input's: 1 keeps pixels
    square."""
    flip: Share = 0.5
    """Horizontal flip probability; use 0 where left and right matter (SSv2)."""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 7
    """RandAugment magnitude on timm's scale of 0 to 10; 0: off."""
    rand_augment_ops: Count = 4
    """RandAugment operations per clip."""
    rand_augment_form: Literal["torchvision", "videomae"] = "torchvision"
    """`torchvision`: its 14 operations, after the crop, bilinear. `videomae`: timm's 15 operations,
    before the crop, bicubic, as in VideoMAE's code; about 3.5 times slower, as stored frames have
    more pixels than crops."""
    erasing: Share = 0.25
    """Random erasing probability; the box is filled with noise."""
    mixup: NonNegative = 0.8
    """Mixup alpha; 0: off."""
    cutmix: NonNegative = 1.0
    """CutMix alpha; 0: off."""
    mix_probability: Share = 1.0
    """Probability of applying mixup or CutMix to a batch."""
    mix_switch: Share = 0.5
    """Probability of CutMix rather than mixup if both are on."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for key, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if low > high:
                raise ValueError(f"`{key}: [{low:g}, {high:g}]` must go from low to high")
        return self


class FinetuneOptim(Optim):
    """AdamW for fine-tuning: the keys of `optim` with defaults of their own. Setting one keeps the
    other defaults."""

    epochs: Count = 100
    """Epochs: passes over the training videos."""
    total_batch: Count = 512
    """Videos per optimiser step over all devices; each contributes `repeats` views."""
    batch_per_device: Count = 8
    """Videos per device in one forward pass."""
    base_lr: Positive = 1e-3
    """Peak learning rate per 256 videos."""
    min_lr: NonNegative = 1e-6
    """Final learning rate per 256 videos; at most `base_lr`."""
    warmup_lr: NonNegative = 0.0
    """Initial learning rate per 256 videos; at most `base_lr`. VideoMAE's scripts set 1e-6 or 1e-8,
    but its scheduler never gets the value and starts at 0."""
    warmup_epochs: NonNegative = 5
    """Epochs of linear warm-up."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW betas."""
    layer_decay: Factor = 0.75
    """Layer-wise learning-rate decay: factor per block, from the head down."""


class ClassHead(Section):
    """The classification head: pooling, norm and a linear layer."""

    pool: Literal["mean", "attention", "cls"] = "mean"
    """`mean`: average of all tokens, as in VideoMAE. `attention`: cross-attention with a few
    learned queries. `cls`: a class token, which is newly initialised, as the encoder is pretrained
    without one."""
    norm: Literal["layer", "batch"] = "layer"
    """Norm before the linear layer: LayerNorm, as in VideoMAE, or LayerNorm followed by BatchNorm
    without affine weights, which removes what all clips have in common. With `batch`, set
    `head_scale: 1`."""
    queries: Annotated[int, Field(ge=1, le=32)] = 8
    """Number of learned queries of `pool: attention`; must divide the encoder's width."""


def _read_weights(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read `class_weights`, with one sentence for whatever is wrong."""
    try:
        return read(value)
    except ValidationError:
        raise PydanticCustomError(
            "class_weights",
            "Input should be `balanced`, or positive weights by class name, such as `{jump: 3}`",
        ) from None


class Finetune(Section):
    """Fine-tuning for action recognition."""

    split: str = "train"
    """Split to train on."""
    val_split: str | None = "val"
    """Split to validate on every `val_every` epochs, which picks the `best` checkpoint; null: no
    validation."""
    val_share: Ratio | None = None
    """Share of the training videos to hold out as `val_split`, of each class alike and always the
    same ones, where the store has no such split: as `tats prepare --val-share`, also for `tats
    evaluate`. A store without splits is divided whole. null holds out none."""
    val_group: str | None = None
    """With `val_share`: a regular expression; videos in whose paths it finds the same text, such as
    `(person\\d+)`, stay together. null: the segments of a file stay together."""
    val_every: Count = 1
    """Epochs between validations; the last epoch is always validated."""
    sampling: Sampling | None = None
    """Frame sampling; null: `data.sampling`."""
    repeats: Count = 1
    """Augmented views of each video in a batch (repeated augmentation); the learning rate is not
    scaled by them."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Stochastic depth: rate of the last block, increasing linearly from 0."""
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the linear layer."""
    head: ClassHead = ClassHead()
    head_scale: Positive = 0.001
    """Factor on the initial weights of the linear layer, which have standard deviation 0.02."""
    heads: Annotated[list[str], Field(min_length=1)] | None = None
    """Class groups with a linear layer each, such as `[verb, noun]` for EPIC-KITCHENS-100. Their
    losses are summed, and the score of a class is the product of the scores of its members. null: a
    single linear layer over all classes."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, Positive] | None, WrapValidator(_read_weights)
    ] = None
    """Class weights in the loss, as `weight` in torch's cross_entropy. `balanced`: inversely
    proportional to the number of training videos, averaging 1 per video. By name: `{jump: 3}`, with
    1 for all others; with `heads`, names look like `verb/take`. null: no weights."""
    freeze: Literal["none", "encoder"] | Count = "none"
    """What to freeze: `none`, the `encoder` (only the head is trained), or a number N for the patch
    embedding and the first N blocks."""
    reinit_blocks: Annotated[int, Field(ge=0)] = 0
    """Re-initialise the last N blocks after loading pretrained weights. What the last blocks learn
    in masked modelling serves the decoder, and a small encoder can do better without it when labels
    are few (arXiv 2205.14443, and arXiv 2006.05987 for BERT). 0: keep all blocks."""
    ema: Ratio | None = None
    """EMA decay of the weights, such as 0.9999, ramped up over the first steps. The average is what
    is validated, saved as the model and evaluated. null: no average."""
    auxiliary: Ratio | None = None
    """Train masked modelling jointly with classification, on the same clips, with the recipe's
    `mask`, `predict`, `head` and `targets`: its weight in the loss (0.9 is published for small data
    sets). null: classification only."""
    drop: FixedMask | None = None
    """Token dropping: the encoder does not see the tokens that this mask hides. It needs a `ratio`;
    LVMAE uses `{kind: tube, ratio: 0.2}` with 128 frames. Cannot be combined with `auxiliary`.
    Validation uses `evaluate.drop`."""
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
        if self.freeze == "encoder" and self.reinit_blocks:
            raise ValueError(
                f"`freeze: encoder` and `reinit_blocks: {self.reinit_blocks}` cannot be combined:"
                " the re-initialised blocks would stay random"
            )
        if self.freeze == "encoder" and self.auxiliary is not None:
            raise ValueError(
                f"`freeze: encoder` and `auxiliary: {self.auxiliary:g}` cannot be combined: masked"
                " modelling on a frozen encoder would only train a head that is thrown away"
            )
        return self

    @model_validator(mode="after")
    def _drop_fits(self) -> Self:
        _refuse_no_ratio(self.drop)
        if self.drop is not None and self.auxiliary is not None:
            raise ValueError(
                f"`drop` and `auxiliary: {self.auxiliary:g}` cannot be combined: with masked"
                " modelling the classifier sees all tokens"
            )
        return self


class Knn(Section):
    """kNN classification on frozen features."""

    pool: Literal["clip", "slice", "token"] = "clip"
    """Which tokens to average: all of the `clip`, those of each time step (`slice`), or none
    (`token`). The results are concatenated, so `slice` keeps temporal and `token` also spatial
    order."""
    whiten: Count | None = None
    """PCA whitening with this many components; null: off. Useful for videos that look alike."""

    split: str = "train"
    """Split that provides the neighbours."""
    neighbours: Count = 20
    """Number of neighbours (k)."""
    temperature: Positive = 0.07
    """Temperature of the similarity-weighted vote."""


class Probe(Section):
    """Probes on frozen features: `--protocol linear` and `--protocol attentive`."""

    split: str = "train"
    """Split to train the probe on."""
    views: Count = 1
    """Training views per video: the centre clip, plus random ones with the crops and flips of
    `finetune.augment`."""
    held_out: Ratio = 0.2
    """Fraction of the training videos, per class, on which learning rate and weight decay are
    selected; the probe is then retrained on all of them. Unused if there is only one choice."""
    epochs: Count = 90
    """Epochs; each uses one view per video."""
    batch: Count = 256
    """Batch size in videos."""
    rates: Annotated[list[Positive], Field(min_length=1)] = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    """Peak learning rates to select from; not scaled by the batch."""
    decays: Annotated[list[NonNegative], Field(min_length=1)] = [0.01, 0.4]
    """Weight decays to select from, in combination with every learning rate."""
    form: Literal["efficient", "vjepa"] = "efficient"
    """Attentive probe. `efficient`: one cross-attention layer with a few learned queries (efficient
    probing). `vjepa`: V-JEPA 2's four blocks, three of self-attention and one of cross-attention
    with one query."""
    queries: Annotated[int, Field(ge=1, le=32)] = 8
    """Number of learned queries of `form: efficient`; must divide the encoder's width."""
    precision: Literal["float16", "float32"] = "float16"
    """Storage precision of cached tokens for the attentive probe; features of a linear probe are
    float32."""
    cache_gb: Positive = 8.0
    """Memory limit for cached features in GB per process; it stops if more is needed."""

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        for key, values in (("rates", self.rates), ("decays", self.decays)):
            if len(set(values)) < len(values):
                raise ValueError(f"`{key}: {values}` lists a value twice")
        return self


def _refuse_no_ratio(drop: FixedMask | None) -> None:
    """Raise ValueError if `ratio` is missing: a mask's default is meant for pretraining."""
    if drop is not None and "ratio" not in drop.model_fields_set:
        raise ValueError(
            f"`drop` needs a `ratio`, the fraction of tokens to drop, such as"
            f" `{{kind: {drop.kind}, ratio: 0.2}}`"
        )


class Evaluate(Section):
    """Evaluation: splits, views and protocols."""

    split: str = "val"
    """Split to evaluate on."""
    layer: Annotated[int, Field(ge=0)] | None = None
    """Encoder block whose output is used as features by `knn`, `linear` and `attentive`; 0: patch
    embeddings with positions. null: the last block, followed by the final norm, which is not
    applied to other layers."""
    shots: Count | None = None
    """Few-shot evaluation with `knn`, `linear` and `attentive`: labelled videos per class, drawn by
    `run.seed`; smaller draws are subsets of larger ones. null: all."""
    segments: Count = 1
    """Temporal clips per video."""
    crops: Literal[1, 3] = 1
    """Spatial crops per clip, along the longer side: 1: centre. 3: centre and both ends."""
    sampling: Sampling | None = None
    """Frame sampling; null: as in fine-tuning."""
    drop: FixedMask | None = None
    """Token dropping in evaluation and validation: the tokens that this mask hides, drawn by
    `run.seed`, video and view. It needs a `ratio`. Frozen features drop them on training videos as
    well."""
    durations: Annotated[list[NonNegative], Field(min_length=1)] | None = None
    """Bin edges in seconds, ascending, such as `[0, 4, 8, 16, 32]`: also report accuracy by video
    length. null: off."""
    batch_per_device: Count = 16
    """Views per device in one forward pass."""
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
