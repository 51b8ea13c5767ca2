"""The typed form of a recipe: frozen pydantic models, unknown keys forbidden.

Every system is a point in mask x head x targets; the other sections say on what data, how it is
optimised and where it runs. Descriptions end up in `recipes/schema.json`, which editors read.
Defaults are VideoMAE's (MCG-NJU/VideoMAE, scripts and run_*.py) unless a description says
otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ratio = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """Base of every recipe section: frozen, strict about keys, described for editors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


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


class Data(Section):
    """Clips as the model sees them. Used by every stage, except the sampling a stage names
    itself."""

    store: str
    """Folder written by `tats prepare`."""
    split: str | None = None
    """Part of the store to pretrain on; null takes every video."""
    frames: Count = 16
    """Frames in a clip."""
    size: Count = 224
    """Height and width of the view in pixels."""
    sampling: Sampling = Sampling(stride=4)
    """How pretraining draws its frames."""
    crop_scales: Annotated[list[Factor], Field(min_length=1)] = [1, 0.875, 0.75, 0.66]
    """Multi-scale corner crop of pretraining: sides as shares of the short side."""
    flip: Share = 0.0
    """Probability of a horizontal flip in pretraining; VideoMAE uses none."""
    repeats: Count = 1
    """Views drawn from each video of a batch in pretraining; they do not enter the learning-rate
    rule."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue values in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Deviation of the red, green and blue values in [0, 1]."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader processes; `auto` is one a core shared by the ranks of this machine, at most 8."""
    max_bad_share: Share = 0.01
    """Share of unreadable clips that training may replace by their neighbour before it stops."""


class Model(Section):
    """The ViT encoder."""

    size: Literal["nano", "tiny", "small", "base", "large", "huge"] = "base"
    """Width / depth / heads: nano 128/6/4, tiny 192/12/3, small 384/12/6, base 768/12/12, large
    1024/24/16, huge 1280/32/16."""
    tubelet: Count = 2
    """Frames in a token."""
    patch: Count = 16
    """Height and width of a token in pixels."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the last block in pretraining, rising linearly from 0."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


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


class LearnedMask(Section):
    """What the learned samplers share."""

    ratio: Ratio = 0.9
    """Share of tokens hidden; the rest, int(tokens x (1 - ratio)), is shown."""
    heads: Count = 8
    """Attention heads of the sampler."""
    base_lr: Positive = 1.5e-4
    """Learning rate per 256 videos of an update, which is one micro-batch over all devices."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay of the trunk; heads, biases and norms have none."""
    warmup: Share = 0.05
    """First share of the steps, in which the learning rate rises; `tats` draws uniformly
    meanwhile."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a uniform distribution mixed into the policy."""
    quota: bool = False
    """Show equally many tokens of every slice; otherwise tokens compete over time too."""
    detach: bool = True
    """Keep the sampler's loss from the patch embedding."""
    clip_grad: Positive | None = 0.5
    """Largest gradient norm of the sampler; null is no limit."""


class AdamaeMask(LearnedMask):
    """AdaMAE's sampler (arXiv 2211.09120): one attention block, log-probability objective."""

    kind: Literal["adamae"]
    ratio: Ratio = 0.95
    """Share of tokens hidden; published."""
    width: Count | None = None
    """Width of the sampler; null is the encoder's, as published."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the sampler; the published code has 0.1."""
    weight: Positive = 1e-4
    """Weight of the sampling loss beside the reconstruction loss; published."""
    detach: bool = False
    """Keep the sampling loss from the patch embedding; the published code lets it through."""
    clip_grad: Positive | None = None
    """Largest gradient norm of the sampler; null, as published, is no limit."""


class TatsMask(LearnedMask):
    """The learned sampler: trajectory attention, actor and critic, trained by PPO beside the
    autoencoder.

    Of TATS (arXiv 2505.08561) only the abstract and the authors' README could be read: these
    coefficients are our choice unless said otherwise.
    """

    kind: Literal["tats"]
    trunk: Literal["trajectory", "mha"] = "trajectory"
    """Trajectory attention (published), or AdaMAE's attention over all tokens."""
    width: Count = 384
    """Width of the sampler; tokens of another width pass through a linear layer."""
    critic: Literal["shared", "separate"] = "shared"
    """The critic reads the actor's trunk, or has one of its own at twice the cost."""
    objective: Literal["ppo", "logprob"] = "ppo"
    """Clipped probability ratios (published), or AdaMAE's log-probabilities."""
    log_prob: Literal["independent", "exact"] = "independent"
    """Count every token as drawn first, or condition each draw on those before it
    (Plackett-Luce)."""
    credit: Literal["masked", "visible"] = "masked"
    """Each hidden token's own error raises its probability to be shown, or the tokens shown share
    minus the clip's mean error."""
    baseline: Literal["critic", "clip_mean", "none"] = "critic"
    """What errors are compared with."""
    epochs: Count = 1
    """PPO updates per batch (K); with 1 the rollout's graph serves the update."""
    rollouts: Count = 1
    """Batches that are collected before an update of each; more than 1 is off-policy and takes
    another forward pass."""
    clip: Positive = 0.2
    """PPO clip range of the per-token probability ratio."""
    entropy: NonNegative = 1.0
    """Weight of the policy's entropy in nats; with standardised advantages it acts as a
    temperature."""
    entropy_target: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Normalised entropy to keep (1 = uniform): `entropy` then is only where the weight starts."""
    value: NonNegative = 0.5
    """Weight of the critic's squared error."""
    max_kl: Positive = 0.02
    """Updates on a batch stop early once the mean KL divergence from the rollout's policy passes
    this."""

    @model_validator(mode="after")
    def _switches_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`width: {self.width}` is not a multiple of `heads: {self.heads}`")
        if self.credit == "visible" and self.baseline == "clip_mean":
            raise ValueError(
                "`credit: visible` has one reward a clip, which `baseline: clip_mean` cancels;"
                " use `critic`"
            )
        if not self.detach and self.rollouts > 1:
            raise ValueError("`rollouts` above 1 keep no graph, so they need `detach: true`")
        return self


Mask = Annotated[RandomMask | TubeMask | AdamaeMask | TatsMask, Field(discriminator="kind")]


class DecoderHead(Section):
    """MAE decoder: visible latents and mask tokens through a narrow ViT."""

    kind: Literal["decoder"] = "decoder"
    width: Count | None = None
    """Decoder width; null is half the encoder's, as published for every size."""
    depth: Count = 4
    """Decoder blocks; published: 4 (small, base), 12 (large, huge)."""
    heads: Count | None = None
    """Decoder heads; null is half the encoder's."""


Head = Annotated[DecoderHead, Field(discriminator="kind")]


class PixelTarget(Section):
    """Pixels of the hidden tokens."""

    kind: Literal["pixels"]
    normalize: bool = True
    """Standardise each cube per channel by its own mean and deviation."""
    weight: Positive = 1.0
    """Weight of this target in the loss."""


Target = Annotated[PixelTarget, Field(discriminator="kind")]


class Optim(Section):
    """AdamW with warm-up and cosine. Learning rates are per 256 videos and scaled by the total
    batch."""

    epochs: Count = 800
    """Passes over the data."""
    total_batch: Count = 2048
    """Videos per optimiser step over all devices, each giving `repeats` views; accumulation is
    derived from it."""
    batch_per_device: Count = 32
    """Videos per forward pass on one device."""
    base_lr: Positive = 1.5e-4
    """Peak learning rate per 256 videos."""
    min_lr: NonNegative = 1e-5
    """Last learning rate per 256 videos."""
    warmup_lr: NonNegative = 0.0
    """First learning rate per 256 videos."""
    warmup_epochs: NonNegative = 40
    """Passes with a linearly rising learning rate; at most `epochs`."""
    betas: tuple[Ratio, Ratio] = (0.9, 0.95)
    """AdamW betas."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay; none on biases, norms and other one-dimensional parameters."""
    clip_grad: Positive | None = None
    """Largest gradient norm; null does not clip."""


class Run(Section):
    """Where and how a training runs."""

    out: str | None = None
    """Run folder; null is runs/<recipe>, and runs/<recipe>-finetune for fine-tuning."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, data order, augmentation and masks."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto` takes CUDA, then MPS, then the CPU."""
    precision: Precision = "auto"
    """`auto` is bf16 autocast on a GPU that has it, else fp32."""
    compile: bool = False
    """Compile encoder and head with torch.compile."""
    max_steps: Count | None = None
    """Stop after so many optimiser steps; the schedule stays that of the full run."""
    log_every: Count = 10
    """Optimiser steps between two lines of metrics.jsonl."""
    save_every: Positive = 20
    """Passes over the data between two checkpoints."""
    keep: Count = 2
    """Numbered checkpoints kept; `last` and `best` come on top."""
    max_bad_steps: Count = 5
    """Steps in a row with a loss or gradient that is not finite before training stops."""


class Augment(Section):
    """Regularisation of fine-tuning."""

    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of the random resized crop."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Aspect of the random resized crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip; 0 for data where left and right matter (SSv2)."""
    rand_augment: Annotated[int, Field(ge=0, le=10)] = 7
    """RandAugment magnitude on timm's scale of 0 to 10; 0 turns it off."""
    rand_augment_ops: Count = 4
    """RandAugment operations per clip."""
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
    warmup_lr: NonNegative = 1e-6
    """First learning rate per 256 videos."""
    warmup_epochs: NonNegative = 5
    """Passes with a linearly rising learning rate; at most `epochs`."""
    betas: tuple[Ratio, Ratio] = (0.9, 0.999)
    """AdamW betas."""
    layer_decay: Factor = 0.75
    """Learning-rate factor per block from the head down."""


class Finetune(Section):
    """Action recognition on top of the pretrained encoder."""

    split: str = "train"
    """Part of the store to train on."""
    val_split: str | None = "val"
    """Part scored after every `val_every` passes to pick `best`; null scores nothing."""
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
    head_scale: Positive = 0.001
    """Factor on the classifier's initial weights."""
    augment: Augment = Augment()
    optim: FinetuneOptim = FinetuneOptim()


class Knn(Section):
    """Nearest neighbours on frozen, mean-pooled features."""

    split: str = "train"
    """Part of the store that holds the neighbours."""
    neighbours: Count = 20
    """Neighbours that vote."""
    temperature: Positive = 0.07
    """Softmax temperature of the cosine similarities that weigh the votes."""


class Evaluate(Section):
    """Views per video and where to look."""

    split: str = "val"
    """Part of the store that is scored."""
    segments: Count = 1
    """Clips along time."""
    crops: Literal[1, 3] = 1
    """Square crops along the long side: the centre, or both ends as well."""
    sampling: Sampling | None = None
    """How frames are drawn; null is fine-tuning's."""
    batch_per_device: Count = 16
    """Views per forward pass."""
    knn: Knn = Knn()


class Recipe(Section):
    """One file says everything about a system: what is seen, guessed and compared, on which data,
    for how long."""

    model_config = ConfigDict(title="tats recipe")

    data: Data
    model: Model = Model()
    mask: Mask
    head: Head = DecoderHead()
    targets: Annotated[list[Target], Field(min_length=1)] = [PixelTarget(kind="pixels")]
    optim: Optim = Optim()
    run: Run = Run()
    finetune: Finetune = Finetune()
    evaluate: Evaluate = Evaluate()

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        side = self.data.size // self.model.patch
        return self.data.frames // self.model.tubelet, side, side

    @model_validator(mode="after")
    def _sizes_divide(self) -> Self:
        for key, whole, part_key, part in (
            ("data.frames", self.data.frames, "model.tubelet", self.model.tubelet),
            ("data.size", self.data.size, "model.patch", self.model.patch),
        ):
            if whole % part:
                raise ValueError(f"`{key}: {whole}` is not a multiple of `{part_key}: {part}`")
        return self
