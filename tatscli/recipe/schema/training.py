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
            "at least 2: should the newest checkpoint be damaged, the one before it must be there"
        )
    return count


Keep = Annotated[int, AfterValidator(_two), Field(json_schema_extra={"minimum": 2})]


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
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW betas."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay; none on biases, norms and other one-dimensional parameters."""
    clip_grad: Positive | None = None
    """Largest gradient norm; null does not clip."""


class Watch(Section):
    """Looking at a pretraining on videos that are held out of it: `watch/...` in metrics.jsonl."""

    share: Ratio = 0.05
    """Share of the training videos that is held out: at least one, always the same ones, whole."""
    every: Count = 10
    """Passes between two looks."""
    videos: Count = 1000
    """Training videos, at most, whose features are the neighbours of the held-out ones."""


class Run(Section):
    """Where and how a training runs."""

    out: str | None = None
    """Run folder; null is runs/<recipe>, and runs/<recipe>-finetune for fine-tuning."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, data order, augmentation and masks."""
    device: Device = "auto"
    """`auto` takes CUDA, then MPS, then the CPU; `cuda:1` is the second GPU that torch sees, for a
    single process."""
    precision: Precision = "auto"
    """`auto` is bf16 autocast on a GPU that computes it, else fp32. fp16 scales the loss, so that
    small gradients do not vanish. Losses, norms, softmax and PPO are fp32 in all of them."""
    tf32: bool = True
    """Let a GPU multiply fp32 numbers as TF32, with 10 bits of their mantissas; false computes them
    in full."""
    threads: Count | Literal["auto"] = "auto"
    """Threads of the model on a CPU. `auto` is one where a step is so small that a second thread
    gains nothing and waits whenever the machine is busy; else what torch takes."""
    compile: bool = False
    """Compile the blocks of encoder and head with torch.compile."""
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    """How several processes share the model: `ddp` keeps a whole one in each and averages the
    gradients, `fsdp` (FSDP2) gives each a share of every weight. `auto` is `ddp`, and `none` in one
    process."""
    max_steps: Count | None = None
    """Stop after so many optimiser steps; the schedule stays that of the full run."""
    log_every: Count = 10
    """Optimiser steps between two lines of metrics.jsonl."""
    save_every: Positive = 20
    """Passes over the data between two checkpoints."""
    peers_timeout: Positive = 600
    """Seconds that a process waits, at the start, for the others of a training to come."""
    keep: Keep = 2
    """Numbered checkpoints kept, at least 2; `last` and `best` come on top."""
    watch: Watch | None = None
    """Hold videos out of a pretraining and look at them now and then; null trains on all."""
    track: list[Literal["tensorboard", "wandb"]] = []
    """Who is told every line of metrics.jsonl besides: `tensorboard` writes to <run>/tensorboard,
    `wandb` (Weights & Biases) to <run>/wandb and to its server."""
    track_pictures: Count | None = 10
    """Passes between two pictures of masks and reconstructions for the trackers; null draws none.
    Of a tokenizer they get those that its training draws anyway."""
    skip_above_std: Positive | None = None
    """Skip a step whose loss is so many standard deviations above the mean of the last 300 good
    steps, once 100 are known; null skips only what is not finite."""
    max_bad_steps: Count = 5
    """Steps in a row that may be skipped, because loss or gradient is not finite or the loss too
    high, before training stops; `tats replay` looks at the last of them."""
