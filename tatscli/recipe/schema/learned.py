"""The learned masks: samplers trained jointly with the autoencoder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import (
    Count,
    NonNegative,
    Positive,
    Ratio,
    Section,
    Share,
    Width,
)


class LearnedMask(Section):
    """Settings that the learned samplers share."""

    ratio: Ratio = 0.9
    """Fraction of tokens to hide; int(tokens x (1 - ratio)) are visible."""
    heads: Count = 8
    """Number of attention heads of the sampler."""
    base_lr: Positive | None = 1.5e-4
    """Peak learning rate per 256 videos, decaying to 0; null: the autoencoder's learning rate at
    every step."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay. Not applied to biases and norms; `tats` decays only the weight matrices
    of the trunk, `adamae` also the actor and the position embeddings."""
    warmup: Share = 0.05
    """Fraction of the training for warm-up: the learning rate rises (if `base_lr` is given), and
    `tats` samples uniformly."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight of a uniform distribution mixed into the policy."""
    quota: bool = False
    """Show the same number of tokens in every slice; false: tokens compete across time as well."""
    detach: bool = True
    """Stop gradients from the sampler's loss into the patch embedding."""
    clip_grad: Positive | None = 0.5
    """Clip the sampler's gradient norm to this; null: no clipping."""


class AdamaeMask(LearnedMask):
    """AdaMAE's sampler (arXiv 2211.09120): one attention block, log-probability objective."""

    kind: Literal["adamae"]
    ratio: Ratio = 0.95
    """Fraction of tokens to hide; the published value."""
    width: Width | None = None
    """Width of the sampler; null: the encoder's, as published."""
    base_lr: Positive | None = None
    """Peak learning rate per 256 videos, decaying to 0; null: the autoencoder's learning rate at
    every step, as published."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the sampler after attention and MLP; the published value."""
    weight: Positive = 1e-4
    """Weight of the sampling loss relative to the reconstruction loss; the published value."""
    detach: bool = False
    """Stop gradients from the sampling loss into the patch embedding; the published code does
    not."""
    clip_grad: Positive | None = None
    """Clip the sampler's gradient norm to this; null: no clipping, as published."""


class TatsMask(LearnedMask):
    """The learned sampler of TATS (arXiv 2505.08561): trajectory attention with actor and critic,
    trained by PPO jointly with the autoencoder.

    Only the abstract and the authors' README were available: coefficients are our choice unless
    stated otherwise.
    """

    kind: Literal["tats"]
    trunk: Literal["trajectory", "mha"] = "trajectory"
    """Trajectory attention (published), or AdaMAE's multi-head attention over all tokens."""
    width: Width = 384
    """Width of the sampler; tokens of a different width are projected."""
    critic: Literal["shared", "separate"] = "shared"
    """Whether the critic shares the actor's trunk or has its own, at twice the cost."""
    objective: Literal["ppo", "logprob"] = "ppo"
    """PPO's clipped probability ratios (published), or AdaMAE's log-probability objective."""
    log_prob: Literal["independent", "exact"] = "independent"
    """Log-probability of the drawn tokens: `independent` treats each draw as the first, `exact`
    conditions it on those before (Plackett-Luce)."""
    credit: Literal["masked", "visible"] = "masked"
    """How errors become rewards. `masked`: each hidden token's error raises its own probability of
    being visible. `visible`: the visible tokens share the negative mean error of the clip."""
    reward: Literal["error", "relative"] = "error"
    """Reward of a hidden token: its `error`, or its error `relative` to the mean of recent clips at
    the same position: what is hard in every clip then counts no more than the rest."""
    baseline: Literal["critic", "clip_mean", "none"] = "critic"
    """Baseline that is subtracted from the rewards."""
    epochs: Count = 1
    """PPO epochs per batch (K); with 1 the update reuses the graph of the rollout."""
    rollouts: Count = 1
    """Batches to collect before updating on each; more than 1 is off-policy and needs another
    forward pass."""
    clip: Positive = 0.2
    """PPO clip range for the per-token probability ratio."""
    entropy: NonNegative = 1.0
    """Weight of the entropy bonus (in nats); with standardised advantages it acts as a
    temperature."""
    entropy_target: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Target for the normalised entropy (1 = uniform); the entropy weight is then adapted, starting
    at `entropy`."""
    value: NonNegative = 0.5
    """Weight of the value loss (the critic's squared error)."""
    max_kl: Positive = 0.02
    """Stop the updates on a batch once the mean KL divergence from the rollout policy exceeds
    this."""

    @model_validator(mode="after")
    def _switches_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`width: {self.width}` is not a multiple of `heads: {self.heads}`")
        if self.credit == "visible" and self.baseline == "clip_mean":
            raise ValueError(
                "`credit: visible` has one reward per clip, which `baseline: clip_mean` cancels;"
                " use `critic`"
            )
        if not self.detach and self.rollouts > 1:
            raise ValueError(
                "`rollouts` above 1 does not keep the graph, so it needs `detach: true`"
            )
        return self
