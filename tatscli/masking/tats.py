"""`tats`: the sampler learned by PPO beside the autoencoder (Rai et al. 2025, arXiv 2505.08561).

The paper publishes the idea: trajectory attention, an actor and a value branch, PPO, joint
training from scratch. The numbers and the forks it leaves open are our choice;
`docs/learned-masks.md` lists them with reasons, and each is a recipe key.

Shapes: B batch, N tokens, K visible, M predicted, A credited, D encoder width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tatscli.masking.learning import ppo
from tatscli.masking.learning.credit import credited_log_prob
from tatscli.masking.learning.learned import LearnedMasker, mean_over_ranks, read_metrics
from tatscli.masking.learning.policy import Policy, PolicyOutput
from tatscli.masking.learning.reward import RunningReward
from tatscli.masking.plan import MaskPlan
from tatscli.recipe import schema

# How the logarithm of the entropy's weight follows the miss of the target: at once, and with every
# update. A dual update alone, the second term, swings: the policy has momentum of its own.
STEER, DUAL_RATE = 20.0, 0.3


@dataclass(slots=True)
class Experience:
    """One batch with what it brought, ready to learn from.

    Attributes:
        tokens_BND: The network's input.
        order_BK: The visible tokens in the order they were drawn.
        predict_BM: Tokens whose error is known.
        old_log_p_BN: Log-probabilities the tokens were drawn with.
        advantage_BA: Of the credited tokens, as judged when they were drawn: the autoencoder, and
            with it the level of errors, moves on while batches wait.
        reward_B: Mean errors of the clips.
    """

    tokens_BND: Tensor
    order_BK: Tensor
    predict_BM: Tensor
    old_log_p_BN: Tensor
    advantage_BA: Tensor
    reward_B: Tensor


class TatsMasker(LearnedMasker):
    """Actor and critic on trajectory attention, trained by PPO on the errors of hidden tokens."""

    config: schema.TatsMask
    log_entropy: Tensor

    def __init__(
        self,
        config: schema.TatsMask,
        *,
        grid: tuple[int, int, int],
        width: int,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(config, grid=grid, width=width, lr_scale=lr_scale)
        self.reward = RunningReward()
        self.keeps_graph = config.rollouts == 1
        self.register_buffer("log_entropy", torch.tensor(math.log(max(config.entropy, 1e-6))))
        self._waiting: list[Experience] = []

    def build_policy(self, width: int) -> Policy:
        """Build trunk, actor and, where it is the baseline, critic."""
        config = self.config
        return Policy(
            grid=self.grid,
            inputs=width,
            width=config.width,
            heads=config.heads,
            trunk=config.trunk,
            critic=config.critic if config.baseline == "critic" else "none",
            floor=config.floor,
            by_slice=config.quota,
        )

    @torch.enable_grad()
    def learn(self, plan: MaskPlan, error_BM: Tensor) -> dict[str, float]:
        """Update actor and critic by PPO from the errors of the last plan's predicted tokens.

        Args:
            plan: What the last `plan` returned, or one that predicts fewer of its hidden tokens.
            error_BM: Error of each token of `plan.predict_BM`; detached here.

        Returns:
            `policy_loss`, `value_loss`, `entropy` (1 = uniform), `entropy_weight`, `kl` and
            `clip_fraction` against the policy drawn from, all before the last update made;
            `explained_variance` of the critic at the rollout; `reward`; `sampler_grad_norm` before
            clipping; `updates` made, `skipped` because something was not finite, and `restored`
            after a collapse. Numbers that are not finite, or that no update has made, are left out.

        Raises:
            RuntimeError: If no plan was made in training mode since the last call.
            ValueError: If the errors do not belong to the plan.
        """
        rollout = self._take_rollout(plan, error_BM)
        reward_BM = error_BM.detach().float()
        reward_B = reward_BM.mean(dim=1)
        self._remember(reward_B)
        metrics = {"reward": reward_B.mean()}
        baseline_B = torch.zeros_like(reward_B)
        if self.config.baseline == "clip_mean":
            baseline_B = reward_B
        elif rollout.value_B is not None:
            baseline_B = self.reward.restore(rollout.value_B)
            metrics["explained_variance"] = ppo.explained_variance(baseline_B, reward_B)
        if self.config.credit == "masked":
            advantage_BA = ppo.advantages(reward_BM, baseline_B)
        else:
            spread_B = self.reward.spread.expand_as(reward_B)
            advantage_B1 = ppo.bounded((baseline_B - reward_B) / spread_B)[:, None]
            advantage_BA = advantage_B1.expand(-1, rollout.order_BK.shape[1])
        self._waiting.append(
            Experience(
                rollout.tokens_BND,
                rollout.order_BK,
                plan.predict_BM,
                rollout.old_log_p_BN,
                advantage_BA,
                reward_B,
            )
        )
        if len(self._waiting) < self.config.rollouts:
            return read_metrics(metrics) | {"updates": 0.0}
        waiting, self._waiting = self._waiting, []
        terms, counts = self._update(waiting, rollout.output)
        self._collect_token_gradient(rollout)
        counts["restored"] = self._watch(terms["entropy"]) if terms else 0.0
        return read_metrics(metrics | terms) | counts

    def _update(
        self, batches: list[Experience], output: PolicyOutput | None
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Pass over the batches `epochs` times, an update each, until the policy is too far off."""
        terms: dict[str, Tensor] = {}
        counts = {"updates": 0.0, "skipped": 0.0}
        for epoch in range(self.config.epochs):
            for batch in batches:
                if output is None:
                    with self._precision:
                        output = self.policy(batch.tokens_BND.detach())
                    kl = ppo.kl_divergence(batch.old_log_p_BN, output.log_p_BN.detach()).mean()
                    # The first pass over a single batch is on-policy by construction.
                    stale = epoch > 0 or len(batches) > 1
                    if stale and not mean_over_ranks(kl).item() <= self.config.max_kl:
                        return terms, counts
                with torch.autocast(batch.reward_B.device.type, enabled=False):
                    loss, terms = self._loss(output, batch)
                    norm = self._step(loss)
                output = None
                terms["sampler_grad_norm"] = norm
                if not norm.isfinite():
                    counts["skipped"] += 1.0
                    return terms, counts
                counts["updates"] += 1.0
                self._steer_entropy(terms["entropy"])
        return terms, counts

    def _loss(self, output: PolicyOutput, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return policy loss + value error - entropy, and the terms as metrics."""
        config = self.config

        def credited(log_p_BN: Tensor) -> Tensor:
            return credited_log_prob(
                log_p_BN,
                batch.order_BK,
                batch.predict_BM,
                credit=config.credit,
                exact=config.log_prob == "exact",
                groups=self.groups,
            )

        new_BA, old_BA = credited(output.log_p_BN), credited(batch.old_log_p_BN)
        ratio_BA = (new_BA - old_BA).exp()
        if config.objective == "ppo":
            policy = ppo.clipped_surrogate(ratio_BA, batch.advantage_BA, config.clip)
        else:
            policy = -(new_BA * batch.advantage_BA).mean()
        entropy = ppo.entropy(output.log_p_BN).mean()
        share = entropy.detach() / math.log(self.tokens)
        weight = torch.as_tensor(config.entropy)
        if config.entropy_target is not None:
            miss = config.entropy_target - share
            weight = (self.log_entropy + STEER * miss).clamp(-10, 10).exp()
        loss = policy - weight * entropy
        terms = {
            "policy_loss": policy,
            "entropy": share,
            "kl": ppo.kl_divergence(batch.old_log_p_BN, output.log_p_BN.detach()).mean(),
            "clip_fraction": ppo.clip_fraction(ratio_BA.detach(), config.clip),
        }
        if config.entropy_target is not None:
            terms["entropy_weight"] = weight
        if output.value_B is not None:
            aim_B = self.reward.standardise(batch.reward_B)
            terms["value_loss"] = (output.value_B - aim_B).square().mean()
            loss = loss + config.value * terms["value_loss"]
        return loss, terms

    def _steer_entropy(self, entropy: Tensor) -> None:
        """Raise the entropy's weight while the policy is sharper than wished, else lower it."""
        target = self.config.entropy_target
        if target is not None:
            miss = target - mean_over_ranks(entropy)
            self.log_entropy.add_(DUAL_RATE * miss).clamp_(-7, 7)

    def _remember(self, reward_B: Tensor) -> None:
        """Take a batch's rewards into the running moments, alike on every rank, if finite."""
        moments = mean_over_ranks(torch.stack([reward_B.mean(), reward_B.square().mean()]))
        if moments.isfinite().all():
            self.reward.update(moments[0], moments[1])

    def _remedy(self) -> str:
        if self.config.entropy_target is not None:
            return f"raise `mask.entropy_target`, now {self.config.entropy_target:g}"
        return (
            f"raise `mask.entropy`, now {self.config.entropy:g}, or set `mask.entropy_target: 0.9`"
        )

    def training_state(self) -> dict[str, Any]:
        """Return the optimiser's state and the batches that wait for an update."""
        waiting = {
            f"waiting/{number}/{name}": getattr(batch, name)
            for number, batch in enumerate(self._waiting)
            for name in Experience.__slots__
        }
        return super().training_state() | waiting

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
        own = {key: value for key, value in state.items() if not key.startswith("waiting/")}
        super().load_training_state(own)
        device = next(self.policy.parameters()).device
        batches: dict[int, dict[str, Tensor]] = {}
        for key in state.keys() - own.keys():
            _, number, name = key.split("/")
            batches.setdefault(int(number), {})[name] = state[key].to(device)
        self._waiting = [Experience(**batches[number]) for number in sorted(batches)]
