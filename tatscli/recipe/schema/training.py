"""How a training is optimised, and where and how it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tatscli.recipe.schema.section import (
    Count,
    Momentum,
    NonNegative,
    Positive,
    Ratio,
    Section,
)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda", "mps"] | Annotated[str, Field(pattern=r"^cuda:[0-9]+$")]


def _two(count: int) -> int:
    if count < 2:
        raise ValueError(
            "must be at least 2, so that one remains if the newest checkpoint is damaged"
        )
    return count


Keep = Annotated[int, AfterValidator(_two), Field(json_schema_extra={"minimum": 2})]


class Optim(Section):
    """AdamW with linear warm-up and cosine decay. Learning rates are per 256 videos and scaled
    linearly with the total batch."""

    epochs: Count = 800
    """Epochs: passes over the training videos."""
    total_batch: Count = 2048
    """Videos per optimiser step over all devices; each contributes `repeats` views. The number of
    accumulation steps is derived from it."""
    batch_per_device: Count = 32
    """Videos per device in one forward pass."""
    base_lr: Positive = 1.5e-4
    """Peak learning rate per 256 videos."""
    min_lr: NonNegative = 1e-5
    """Final learning rate per 256 videos; at most `base_lr`."""
    warmup_lr: NonNegative = 0.0
    """Initial learning rate per 256 videos; at most `base_lr`."""
    warmup_epochs: NonNegative = 40
    """Epochs of linear warm-up."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW betas."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay; not applied to biases, norms and other one-dimensional parameters."""
    clip_grad: Positive | None = None
    """Clip the gradient norm to this; null: no clipping."""


class Watch(Section):
    """Metrics on held-out videos during pretraining: `watch/...` in metrics.jsonl."""

    share: Ratio = 0.05
    """Fraction of the training videos to hold out, at least one. Whole videos, chosen by name, so
    every run holds out the same ones."""
    every: Count = 10
    """Epochs between two evaluations."""
    videos: Count = 1000
    """Maximum number of training videos used as kNN neighbours of the held-out ones."""


class Run(Section):
    """Where and how a training runs."""

    out: str | None = None
    """Run folder; null: runs/<recipe>, or runs/<recipe>-finetune for fine-tuning."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed for weights, data order, augmentation and masks."""
    device: Device = "auto"
    """`auto`: CUDA if available, then MPS, then CPU. `cuda:1` is the second GPU that torch sees,
    for a single process."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on GPUs that support it, else fp32. `fp16` uses loss scaling. Losses,
    norms, softmax and PPO are always computed in fp32."""
    tf32: bool = True
    """Use TF32 (10-bit mantissa) for fp32 matrix products on GPUs; false: full fp32."""
    threads: Count | Literal["auto"] = "auto"
    """CPU threads for the model. `auto`: one thread for steps too small to gain from more, else
    torch's default."""
    compile: bool = False
    """Compile the transformer blocks of encoder and head with torch.compile."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How processes share the model: `ddp` replicates it and averages gradients, `fsdp` (FSDP2)
    shards weights, gradients and optimiser state. `auto`: `ddp` with several processes, `none` with
    one."""
    max_steps: Count | None = None
    """Stop after this many optimiser steps, on the schedule of the full run; for trials. New runs
    that start from this one do not inherit it."""
    log_every: Count = 10
    """Optimiser steps between lines of metrics.jsonl."""
    save_every: Positive = 20
    """Epochs between checkpoints; fractions are allowed."""
    peers_timeout: Positive = 600
    """Seconds to wait at startup for the other processes of a distributed training."""
    keep: Keep = 2
    """Number of recent checkpoints to keep, at least 2; those behind `last` and `best` are always
    kept."""
    watch: Watch | None = None
    """Hold out some videos of a pretraining and evaluate on them regularly; null: train on all."""
    track: list[Literal["tensorboard", "wandb"]] = []
    """Where else to log the metrics: `tensorboard` writes to <run>/tensorboard, `wandb` (Weights &
    Biases) to <run>/wandb and to its server."""
    track_pictures: Count | None = 10
    """Epochs between images of masks and reconstructions for the trackers; null: no images. For
    tokenizers, the images that training draws anyway are logged."""
    skip_above_std: Positive | None = None
    """Skip a step whose loss is more than this many standard deviations above the mean of the last
    300 good steps (once there are 100); null: skip only losses and gradients that are not
    finite."""
    max_bad_steps: Count = 5
    """Stop the training after this many skipped steps in a row; `tats replay` re-runs the last of
    them."""
