"""`tats`: the sampler learned by PPO beside the autoencoder (Rai et al. 2025, arXiv 2505.08561).

The paper publishes the idea: trajectory attention, an actor and a value branch, PPO, joint
training from scratch. The numbers and the forks it leaves open are our choice; `docs/masks.md`
lists them with reasons.

Shapes: B batch, N tokens, K visible, M predicted, D encoder width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tatscli.data.motion import MotionField
from tatscli.masking import ppo
from tatscli.masking.base import Masker
from tatscli.masking.draw import gumbel_top_k, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.policy import Policy, PolicyOutput
from tatscli.masking.reward import RunningReward
from tatscli.recipe import schema

BETAS = (0.9, 0.95)


@dataclass(slots=True)
class Rollout:
    """One batch between `plan` and `learn`.

    Attributes:
        tokens_BND: The network's input, without gradient.
        output: The network's answer with its graph: the first update needs no second forward pass.
        old_log_p_BN: Log-probabilities the tokens were drawn with: the policy's, or uniform in the
            warm-up.
        precision: Autocast as it was, so that later passes of this batch round alike.
    """

    tokens_BND: Tensor
    output: PolicyOutput
    old_log_p_BN: Tensor
    precision: torch.autocast


class TatsMasker(Masker):
    """Draws int(tokens x (1 - ratio)) visible tokens of a clip from a learned policy.

    Nothing flows between the two learners: the policy sees detached tokens and detached errors,
    and a draw has no gradient. Each `learn` is one complete update on one micro-batch, so
    `lr_scale` counts the videos in it over all devices: the steps of an accumulated batch then add
    up to the step of the whole.

    Args:
        config: The recipe's `mask` section.
        grid: Tokens along time, height and width.
        width: Width D of the tokens given.
        lr_scale: Factor on `config.base_lr`: videos per update / 256.
    """

    needs_embeddings = True

    def __init__(
        self,
        config: schema.TatsMask,
        *,
        grid: tuple[int, int, int],
        width: int,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(grid, config.ratio)
        self.config = config
        self.visible = visible_count(self.tokens, config.ratio)
        self.policy = Policy(grid=grid, inputs=width, width=config.width, heads=config.heads)
        self.reward = RunningReward()
        self.peak_lr = config.base_lr * lr_scale
        self.optimizer = torch.optim.AdamW(
            self.policy.decay_groups(config.weight_decay), lr=self.peak_lr, betas=BETAS
        )
        self.warming_up = False
        self._rollout: Rollout | None = None

    @classmethod
    def from_recipe(
        cls, config: Any, *, grid: tuple[int, int, int], width: int, lr_scale: float = 1.0
    ) -> Self:
        """Build from the recipe's `mask` section."""
        return cls(config, grid=grid, width=width, lr_scale=lr_scale)

    def schedule(self, step: int, total_steps: int) -> None:
        """Set warm-up and learning rate: a rise while draws are uniform, then a cosine to zero."""
        warmup = self.config.warmup * total_steps
        self.warming_up = step < warmup
        if self.warming_up:
            factor = min(1.0, (step + 1) / warmup)
        else:
            factor = 0.5 + 0.5 * math.cos(
                math.pi * (step - warmup) / max(1.0, total_steps - warmup)
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * factor

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Draw visible tokens; in training mode the rollout is kept for `learn`."""
        tokens_BND = tokens_BND.detach()
        with torch.set_grad_enabled(self.training):
            output = self.policy(tokens_BND)
        log_p_BN = self._drawable(output.log_p_BN.detach())
        if self.training:
            self._rollout = Rollout(tokens_BND, output, log_p_BN, _autocast_now(tokens_BND.device))
        return MaskPlan.from_visible(gumbel_top_k(log_p_BN, self.visible, generator), self.tokens)

    def _drawable(self, log_p_BN: Tensor) -> Tensor:
        """Return what to draw with: uniform in the warm-up or without a finite policy.

        Without one the batch's update is never applied: its gradient is not finite either, and
        `learn` counts it as skipped.
        """
        uniform_BN = torch.full_like(log_p_BN, -math.log(self.tokens))
        if self.training and self.warming_up:
            return uniform_BN
        return torch.where(log_p_BN.isfinite().all(dim=1, keepdim=True), log_p_BN, uniform_BN)

    @torch.enable_grad()
    def learn(self, plan: MaskPlan, error_BM: Tensor) -> dict[str, float]:
        """Update actor and critic by PPO from the errors of the last plan's predicted tokens.

        Args:
            plan: What the last `plan` returned, or one that predicts fewer of its hidden tokens.
            error_BM: Error of each token of `plan.predict_BM`; detached here.

        Returns:
            `policy_loss`, `value_loss`, `entropy` (1 = uniform), `kl` and `clip_fraction` against
            the policy drawn from, all before the last update made; `explained_variance` of the
            critic at the rollout; `reward`; `sampler_grad_norm` before clipping; `updates` made and
            `skipped` because something was not finite. Numbers that are not finite are left out.

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
        reward_BM = error_BM.detach().float()
        reward_B = reward_BM.mean(dim=1)
        self._remember(reward_B)
        old_value_B = self.reward.restore(rollout.output.value_B.detach())
        advantage_BM = ppo.advantages(reward_BM, old_value_B)
        metrics = {
            "reward": reward_B.mean(),
            "explained_variance": ppo.explained_variance(old_value_B, reward_B),
        }
        updates, skipped = 0, 0
        output = rollout.output
        for epoch in range(self.config.epochs):
            if epoch:
                with rollout.precision:
                    output = self.policy(rollout.tokens_BND)
                kl = ppo.kl_divergence(rollout.old_log_p_BN, output.log_p_BN.detach()).mean()
                if not _mean_over_ranks(kl).item() <= self.config.max_kl:
                    break
            # An outer autocast would reach into the backward pass and round its products.
            with torch.autocast(reward_BM.device.type, enabled=False):
                loss, terms = self._loss(output, rollout, plan, advantage_BM, reward_B)
                norm = self._step(loss)
            metrics |= terms | {"sampler_grad_norm": norm}
            if not norm.isfinite():
                skipped = 1
                break
            updates += 1
        values = torch.stack([value.detach().float() for value in metrics.values()]).tolist()
        finite = {k: v for k, v in zip(metrics, values, strict=True) if math.isfinite(v)}
        return finite | {"updates": float(updates), "skipped": float(skipped)}

    def _loss(
        self,
        output: PolicyOutput,
        rollout: Rollout,
        plan: MaskPlan,
        advantage_BM: Tensor,
        reward_B: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return clipped surrogate + value error - entropy, and the terms as metrics."""
        config, old_log_p_BN = self.config, rollout.old_log_p_BN
        ratio_BM = (output.log_p_BN - old_log_p_BN).gather(1, plan.predict_BM).exp()
        policy = ppo.clipped_surrogate(ratio_BM, advantage_BM, config.clip)
        value = (output.value_B - self.reward.standardise(reward_B)).square().mean()
        entropy = ppo.entropy(output.log_p_BN).mean()
        terms = {
            "policy_loss": policy,
            "value_loss": value,
            "entropy": entropy / math.log(self.tokens),
            "kl": ppo.kl_divergence(old_log_p_BN, output.log_p_BN.detach()).mean(),
            "clip_fraction": ppo.clip_fraction(ratio_BM.detach(), config.clip),
        }
        return policy + config.value * value - config.entropy * entropy, terms

    def _remember(self, reward_B: Tensor) -> None:
        """Take a batch's rewards into the running moments, alike on every rank, if finite."""
        moments = _mean_over_ranks(torch.stack([reward_B.mean(), reward_B.square().mean()]))
        if moments.isfinite().all():
            self.reward.update(moments[0], moments[1])

    def _step(self, loss: Tensor) -> Tensor:
        """Update alike on every rank, unless the norm, which is returned, is not finite."""
        self.optimizer.zero_grad()
        loss.backward()
        _average_gradients(self.policy)
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.clip_grad)
        # Averaging spreads what is not finite on one rank to all, so all decide alike.
        if norm.isfinite():
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def scores_BN(self, tokens_BND: Tensor) -> Tensor:
        """Return each token's probability to be drawn first: (B, N), float32; rows add up to 1."""
        return self.policy(tokens_BND).log_p_BN.exp()

    def macs(self) -> int:
        """Count the multiply-accumulates of one forward pass of the policy per clip."""
        return self.policy.macs()

    def training_state(self) -> dict[str, Any]:
        """Return AdamW's moments and step counts as `<parameter>/<moment>`."""
        return {
            f"{name}/{moment}": value.detach()
            for name, parameter in self.policy.named_parameters()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
        parameters = dict(self.policy.named_parameters())
        self.optimizer.state.clear()
        for key, value in state.items():
            name, moment = key.rsplit("/", 1)
            parameter = parameters[name]
            # AdamW keeps its step count on the CPU whatever the parameters' device.
            place = "cpu" if moment == "step" else parameter.device
            self.optimizer.state[parameter][moment] = value.to(place, copy=True)


def _autocast_now(device: torch.device) -> torch.autocast:
    """Return a context that restores the autocast state of this moment."""
    kind = device.type
    return torch.autocast(
        kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
    )


def _mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; the tensor itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their mean over all processes, in one transfer."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    mean = _mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = mean.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
