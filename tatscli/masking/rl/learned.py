"""`LearnedMasker`: what learned samplers share: drawing, their learner, resuming, guard rails.

Shapes: B batch, N tokens, K visible, M predicted, D encoder width.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.device import autocast_now
from tatscli.engine.learner import Learner
from tatscli.engine.optim import fused_adamw
from tatscli.engine.part import Lesson, under
from tatscli.engine.schedule import lr_at
from tatscli.masking.base import Masker
from tatscli.masking.draw import gumbel_top_k, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo
from tatscli.masking.rl.guard import Guard
from tatscli.masking.rl.policy import Policy, PolicyOutput
from tatscli.masking.rl.reward import with_variance
from tatscli.recipe.derive import Schedule

BETAS = (0.9, 0.95)


@dataclass(slots=True)
class Rollout:
    """One batch between `plan` and `learn`.

    Attributes:
        tokens_BND: The network's input.
        output: The network's answer with its graph, so that the first update needs no second
            forward pass; None where batches wait in a buffer.
        value_B: What the critic said, without gradient.
        old_log_p_BN: Log-probabilities the tokens were drawn with: the policy's, or uniform in the
            warm-up.
        order_BK: The visible tokens in the order they were drawn.
    """

    tokens_BND: Tensor
    output: PolicyOutput | None
    value_B: Tensor | None
    old_log_p_BN: Tensor
    order_BK: Tensor


class LearnedMasker(Masker):
    """Draws the visible tokens of a clip from a learned policy.

    It affects the autoencoder only through the loss that `learn` returns, and only with
    `detach: false`: a draw has no gradient, and errors and tokens come detached.
    Each optimiser step is one update of the policy, at a rate for the videos in it.

    Attributes:
        temperature: Divides the logits; 1 in training, others are for looking at a policy.
    """

    config: Any  # a section derived from `schema.LearnedMask`
    needs_embeddings = True
    keeps_graph = True
    warms_up_uniformly = True
    decays_every_matrix = False

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.groups = grid[0] if config.quota else 1
        self.visible = self.groups * visible_count(self.tokens // self.groups, config.ratio)
        self.reaches_encoder = not config.detach
        self.temperature = 1.0
        self.policy = self.build_policy(width)
        self.guard = Guard(self.policy)
        self.learner: Learner | None = None
        self.warmup_steps = 0.0
        self.micro_share = 1.0  # of a step's videos in a micro-batch
        self._rollout: Rollout | None = None
        # Autocast as it was when planning, so that later passes over a batch round the same.
        self._precision: AbstractContextManager[Any] = nullcontext()

    def build_policy(self, width: int) -> Policy:
        """Build the network that the recipe describes, for tokens of a width."""
        raise NotImplementedError

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Begin a training: the rate rises linearly in the warm-up, then falls as a cosine to 0;
        without `base_lr` it is the autoencoder's."""
        config = self.config
        self.warmup_steps = config.warmup * schedule.total_steps
        self.micro_share = 1 / schedule.accumulation
        groups = self.policy.decay_groups(config.weight_decay, every=self.decays_every_matrix)
        self.learner = Learner(
            self.policy,
            fused_adamw(groups, lr=schedule.peak_lr, betas=BETAS),
            lr=partial(self._lr_at, schedule=schedule),
            clip_grad=config.clip_grad,
            averages=True,
        )
        return {"sampler": self.learner}

    def _lr_at(self, step: int, schedule: Schedule) -> float:
        """Return the learning rate of an optimiser step."""
        warmup, total = self.warmup_steps, schedule.total_steps
        if self.config.base_lr is None:
            return lr_at(step, schedule)
        peak: float = self.config.base_lr * schedule.lr_scale
        if step < warmup:
            return peak * min(1.0, (step + 1) / warmup)
        share = (step - warmup) / max(1.0, total - warmup)
        return peak * (0.5 + 0.5 * math.cos(math.pi * share))

    @property
    def warming_up(self) -> bool:
        """Whether the step in progress belongs to the warm-up."""
        return self.learner is not None and self.learner.step < self.warmup_steps

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Draw visible tokens; in training mode the rollout is kept for `learn`."""
        tokens_BND = clip.tokens_BND
        self._precision = autocast_now(tokens_BND.device)
        graph = self.training and self.keeps_graph
        seen_BND = tokens_BND.detach()
        if graph and self.reaches_encoder and tokens_BND.requires_grad:
            # A loss that is not finite must not cost the encoder its step.
            seen_BND = tokens_BND.view_as(tokens_BND)
            seen_BND.register_hook(lambda grad: torch.where(grad.isfinite().all(), grad, 0.0))
        with torch.set_grad_enabled(graph):
            output = self.policy(seen_BND, self.temperature, later=graph)
        log_p_BN = self._drawable(output.log_p_BN.detach())
        order_BK = self._draw(log_p_BN, draws)
        if self.training:
            entropy = ppo.entropy(output.log_p_BN.detach()).mean()
            self.guard.hear(entropy / math.log(self.tokens))
            value_B = None if output.value_B is None else output.value_B.detach()
            kept = output if graph else None
            self._rollout = Rollout(seen_BND.detach(), kept, value_B, log_p_BN, order_BK)
        return MaskPlan.from_visible(order_BK, self.tokens)

    def _drawable(self, log_p_BN: Tensor) -> Tensor:
        """Return what to draw with: uniform in the warm-up or without a finite policy.

        Without one the batch's update is never applied, as its gradient is not finite either.
        """
        uniform_BN = torch.full_like(log_p_BN, -math.log(self.tokens))
        if self.training and self.warming_up and self.warms_up_uniformly:
            return uniform_BN
        return torch.where(log_p_BN.isfinite().all(dim=1, keepdim=True), log_p_BN, uniform_BN)

    def _draw(self, log_p_BN: Tensor, draws: Draws) -> Tensor:
        """Draw the visible tokens, equally many of each group: (B, K), in the order drawn."""
        size = self.tokens // self.groups
        log_p_BGS = log_p_BN.unflatten(1, (self.groups, size))
        order_BGK = gumbel_top_k(log_p_BGS, self.visible // self.groups, draws)
        first_G1 = torch.arange(self.groups, device=order_BGK.device)[:, None] * size
        return (order_BGK + first_G1).flatten(1)

    def _take_rollout(self, plan: MaskPlan, error_BM: Tensor) -> Rollout:
        """Return the rollout of the last plan.

        Raises:
            RuntimeError: If no plan was made in training mode since the last call.
            ValueError: If the errors do not belong to the plan.
        """
        rollout, self._rollout = self._rollout, None
        if rollout is None:
            raise RuntimeError("learn() needs a plan() made in training mode before each call")
        if error_BM.shape != plan.predict_BM.shape:
            raise ValueError(
                f"errors of shape {tuple(error_BM.shape)} do not belong to a plan that predicts "
                f"{tuple(plan.predict_BM.shape)} tokens"
            )
        return rollout

    def after_step(self, done: int, total: int) -> Lesson:
        """Let the guard judge the policy now and then; `restored` is 1 where it went back."""
        problem = self.guard.after_step(done)
        if problem is None:
            return Lesson({"restored": 0.0})
        if self.learner is not None:
            self.learner.forget()  # its momentum would lead straight back
        return Lesson({"restored": 1.0}, [f"{problem}; {self._remedy()}"])

    def _remedy(self) -> str:
        return "a smaller `mask.base_lr` may help"

    @torch.no_grad()
    def scores_BN(self, clip: Clip) -> Tensor:
        """Return each token's probability to be drawn first: (B, N), float32; rows add up to 1."""
        return self.policy(clip.tokens_BND, self.temperature).log_p_BN.exp()

    def tensors(self) -> dict[str, Tensor]:
        """Return `weights/`, the optimiser's moments under `training/`, and the guard's copy."""
        moments = {} if self.learner is None else self.learner.tensors()
        return (
            {f"weights/{name}": value for name, value in self.state_dict().items()}
            | {f"training/{name}": value for name, value in moments.items()}
            | {f"guard/{name}": value for name, value in self.guard.tensors().items()}
        )

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned; outside of a training the weights alone."""
        self.load_state_dict(with_variance(under("weights/", tensors)))
        if self.learner is not None:
            self.guard.load(under("guard/", tensors))
            self.learner.load(under("training/", tensors))
