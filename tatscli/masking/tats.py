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

from tatscli.engine import distributed
from tatscli.engine.device import full_precision
from tatscli.engine.learner import Learner
from tatscli.engine.part import Lesson, under
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo
from tatscli.masking.rl.credit import credited_log_prob
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.masking.rl.policy import Policy, PolicyOutput
from tatscli.masking.rl.reward import RunningReward, TypicalError
from tatscli.recipe import schema

# How the logarithm of the entropy's weight follows the last update's miss of the target: once, and
# summed up. A dual update alone, the second term, swings: the policy has momentum of its own.
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
        reward_B: Mean rewards of the clips.
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
    last_entropy: Tensor

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.reward = RunningReward()
        self.typical = TypicalError(self.tokens) if config.reward == "relative" else None
        self.keeps_graph = config.rollouts == 1
        self.register_buffer("log_entropy", torch.tensor(math.log(max(config.entropy, 1e-6))))
        # As it was at the last update, 1 is uniform: the first policy is.
        self.register_buffer("last_entropy", torch.ones(()), persistent=False)
        self._waiting: list[Experience] = []
        self._entropies: list[Tensor] = []
        self._rewards: list[Tensor] = []

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

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> Lesson:
        """Judge the last plan by its errors, and return the loss of a first update.

        Where batches are collected first (`rollouts`), or passed over several times (`epochs`),
        the other updates follow in `after_step`.

        Args:
            plan: What the last `plan` returned, or one that predicts fewer of its hidden tokens.
            error_BM: Error of each token of `plan.predict_BM`, without gradient.

        Returns:
            The loss, unless batches are collected, and metrics: `policy_loss`, `value_loss`,
            `entropy` (1 = uniform), `entropy_weight`, `kl` and `clip_fraction` against the policy
            drawn from; `explained_variance` of the critic; `reward`.

        Raises:
            RuntimeError: If no plan was made in training mode since the last call.
            ValueError: If the errors do not belong to the plan.
        """
        rollout = self._take_rollout(plan, error_BM)
        reward_BM = error_BM.detach().float()
        if self.typical is not None:
            reward_BM = self.typical.relative(reward_BM, plan.predict_BM)
        reward_B = reward_BM.mean(dim=1)
        self._rewards.append(reward_B)
        metrics = {"reward": reward_B.mean()}
        baseline_B = torch.zeros_like(reward_B)
        if self.config.baseline == "clip_mean":
            baseline_B = reward_B
        elif rollout.value_B is not None:
            baseline_B = self.reward.restore(rollout.value_B, reward_B)
            metrics["explained_variance"] = ppo.explained_variance(baseline_B, reward_B)
        if self.config.credit == "masked":
            advantage_BA = ppo.advantages(reward_BM, baseline_B)
        else:
            advantage_B1 = ppo.bounded(self.reward.in_spreads(baseline_B - reward_B))[:, None]
            advantage_BA = advantage_B1.expand(-1, rollout.order_BK.shape[1])
        batch = Experience(
            rollout.tokens_BND,
            rollout.order_BK,
            plan.predict_BM,
            rollout.old_log_p_BN,
            advantage_BA,
            reward_B,
        )
        if not self.keeps_graph or self.config.epochs > 1:
            self._waiting.append(batch)
        if rollout.output is None:
            return Lesson(metrics)
        with full_precision(reward_B.device):
            loss, terms = self._loss(rollout.output, batch)
        self._entropies.append(terms["entropy"])
        return Lesson(metrics | terms, loss=loss)

    def after_step(self, done: int, total: int) -> Lesson:
        """Make the updates that are still to be made of the batches at hand, and look at the guard.

        Returns:
            Beside `restored`, those of the updates made here: `updates`, and the terms of `learn`
            as they were before the last of them.
        """
        metrics: dict[str, Tensor | float] = {}
        if self._entropies and self.learner is not None:
            entropy = torch.stack(self._entropies).mean()
            self._entropies.clear()
            self._steer_entropy(entropy, skip=self.learner.left_out)
        if self.learner is not None and len(self._waiting) >= self.config.rollouts:
            waiting, self._waiting = self._waiting, []
            passes = self.config.epochs - (1 if self.keeps_graph else 0)
            metrics |= self._pass_over(waiting, passes, self.learner)
        if self._rewards:  # only now: all updates of a step are judged by the same level
            self.reward.update(torch.cat(self._rewards))
            if self.typical is not None:
                self.typical.update()
            self._rewards.clear()
        lesson = super().after_step(done, total)
        return lesson._replace(metrics={**metrics, **lesson.metrics})

    def _pass_over(
        self, batches: list[Experience], passes: int, learner: Learner
    ) -> dict[str, Tensor]:
        """Pass over batches, an update each, until the policy is too far from the one drawn from.

        Whether it is stays on the device: what comes after is computed and left out.
        """
        made = torch.zeros((), device=batches[0].reward_B.device)
        over = torch.zeros_like(made, dtype=torch.bool)
        nothing = torch.full_like(made, torch.nan)
        last: dict[str, Tensor] = {}
        for number, batch in enumerate(batches * passes):
            with self._precision:
                output = self.policy(batch.tokens_BND)
            with full_precision(made.device):
                loss, terms = self._loss(output, batch)
            # The first pass over a single batch is on-policy by construction.
            if number or self.keeps_graph or len(batches) > 1:
                over = over | ~(distributed.mean(terms["kl"]) <= self.config.max_kl)
            norm = learner.learn(loss, skip=over, share=self.micro_share)
            over = over | ~norm.isfinite()
            made = made + ~over
            self._steer_entropy(terms["entropy"], skip=over)
            terms["sampler_grad_norm"] = norm
            last = {
                name: torch.where(over, last.get(name, nothing), value.detach())
                for name, value in terms.items()
            }
        return last | {"updates": made}

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
        weight: Tensor | float = config.entropy
        if config.entropy_target is not None:
            miss = config.entropy_target - self.last_entropy
            weight = (self.log_entropy + STEER * miss).clamp(-10, 10).exp()
        loss = policy - weight * entropy
        terms = {
            "policy_loss": policy,
            "entropy": share,
            "kl": ppo.kl_divergence(batch.old_log_p_BN, output.log_p_BN.detach()).mean(),
            "clip_fraction": ppo.clip_fraction(ratio_BA.detach(), config.clip),
        }
        if isinstance(weight, Tensor):
            terms["entropy_weight"] = weight
        if output.value_B is not None:
            aim_B = self.reward.standardise(batch.reward_B)
            terms["value_loss"] = (output.value_B - aim_B).square().mean()
            loss = loss + config.value * terms["value_loss"]
        return loss, terms

    def _steer_entropy(self, entropy: Tensor, skip: Tensor | None = None) -> None:
        """Raise the entropy's weight while the policy is sharper than wished, else lower it."""
        target = self.config.entropy_target
        if target is None:
            return
        entropy = distributed.mean(entropy)
        moved = (self.log_entropy + DUAL_RATE * (target - entropy)).clamp(-7, 7)
        unsure = ~entropy.isfinite() if skip is None else skip | ~entropy.isfinite()
        self.log_entropy.copy_(torch.where(unsure, self.log_entropy, moved))
        self.last_entropy.copy_(torch.where(unsure, self.last_entropy, entropy))

    def _remedy(self) -> str:
        if self.config.entropy_target is not None:
            return f"raise `mask.entropy_target`, now {self.config.entropy_target:g}"
        return (
            f"raise `mask.entropy`, now {self.config.entropy:g}, or set `mask.entropy_target: 0.9`"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what every learned mask keeps, what the entropy's weight follows, and the batches
        that wait for an update."""
        waiting = {
            f"waiting/{number}/{name}": getattr(batch, name)
            for number, batch in enumerate(self._waiting)
            for name in Experience.__slots__
        }
        steering = {"steering/entropy": self.last_entropy}
        return super().tensors() | (steering if self.config.entropy_target else {}) | waiting

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        # The first format kept the batches among the optimiser's moments.
        tensors = {key.replace("training/waiting/", "waiting/"): tensors[key] for key in tensors}
        super().load(tensors)
        if self.learner is None:
            return
        if self.config.entropy_target is not None:
            # Checkpoints of before did not keep it; the target itself changes nothing.
            kept = tensors.get("steering/entropy", torch.tensor(self.config.entropy_target))
            self.last_entropy.copy_(kept)
        device = self.log_entropy.device
        batches: dict[int, dict[str, Tensor]] = {}
        for key, value in under("waiting/", tensors).items():
            number, name = key.split("/")
            batches.setdefault(int(number), {})[name] = value.to(device, copy=True)
        self._waiting = [Experience(**batches[number]) for number in sorted(batches)]
