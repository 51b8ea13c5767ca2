"""The learned masks: samplers trained beside the autoencoder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tatscli.recipe.schema.section import Count, NonNegative, Positive, Ratio, Section, Share


class LearnedMask(Section):
    """What the learned samplers share."""

    ratio: Ratio = 0.9
    """Share of tokens hidden; the rest, int(tokens x (1 - ratio)), is shown."""
    heads: Count = 8
    """Attention heads of the sampler."""
    base_lr: Positive | None = 1.5e-4
    """Peak learning rate per 256 videos of an optimiser step, from which it falls to 0; null is the
    autoencoder's rate at every step."""
    weight_decay: NonNegative = 0.05
    """AdamW weight decay. Biases and norms have none; of `tats` only the trunk's matrices decay, of
    `adamae` also the actor and the position table."""
    warmup: Share = 0.05
    """First share of the steps, in which the learning rate rises if `base_lr` is given; `tats`
    draws uniformly meanwhile."""
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
    base_lr: Positive | None = None
    """Peak learning rate per 256 videos of an optimiser step, from which it falls to 0; null, as
    published, is the autoencoder's rate at every step."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout of the sampler in training, after its attention and its MLP; published."""
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
