"""`adamae`: the sampler of AdaMAE (Bandara et al. 2023, arXiv 2211.09120; wgcban/adamae, MIT).

One attention block over the patch embeddings, a linear layer, a softmax over all tokens of the
clip. Its loss is the mean over hidden tokens of -log p times the error, weighted by 1e-4; there is
no baseline, no ratio and no entropy term. It is an ordinary part of the training's loss, so its
gradient also reaches the patch embedding.

Block, dropout, weight decay and, without `base_lr`, the learning rate of every step are those of
the published code, whose optimiser trains sampler and autoencoder together. Ours: the actor starts
at zero, so that the first masks are exactly uniform (there Xavier-uniform weights).

Shapes: B batch, N tokens, M predicted.
"""

from __future__ import annotations

import math

from torch import Tensor

from tatscli.engine.part import Lesson
from tatscli.errors import RecipeError
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.masking.rl.policy import Policy
from tatscli.recipe import schema


def sampling_loss(log_p_BN: Tensor, predict_BM: Tensor, error_BM: Tensor) -> Tensor:
    """Return the mean over clips and hidden tokens of -log p x error, a scalar.

    Args:
        log_p_BN: Log-probabilities of the tokens.
        predict_BM: The hidden tokens.
        error_BM: Their errors, without gradient.
    """
    return -(log_p_BN.gather(1, predict_BM) * error_BM).mean()


class AdamaeMasker(LearnedMasker):
    """Draws from the softmax of one attention block, trained by the log-probability objective."""

    warms_up_uniformly = False  # its warm-up is that of the learning rate alone
    decays_every_matrix = True

    config: schema.AdamaeMask

    def build_policy(self, width: int) -> Policy:
        """Build one attention block and a linear layer.

        Raises:
            RecipeError: The heads do not divide the width.
        """
        config, inner = self.config, self.config.width or width
        if inner % config.heads:
            raise RecipeError(
                f"`mask.heads: {config.heads}` does not divide the sampler's width {inner}"
            )
        return Policy(
            grid=self.grid,
            inputs=width,
            width=inner,
            heads=config.heads,
            trunk="mha",
            critic="none",
            floor=config.floor,
            by_slice=config.quota,
            dropout=config.dropout,
            final_norm=False,
        )

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> Lesson:
        """Return the weighted sampling loss of the last plan.

        Args:
            plan: What the last `plan` returned, or one that predicts fewer of its hidden tokens.
            error_BM: Error of each token of `plan.predict_BM`, without gradient.

        Returns:
            The loss, and the metrics `sampling_loss` (unweighted), `entropy` (1 = uniform) and
            `reward`.

        Raises:
            RuntimeError: If no plan was made in training mode since the last call.
            ValueError: If the errors do not belong to the plan.
        """
        rollout = self._take_rollout(plan, error_BM)
        assert rollout.output is not None
        reward_BM = error_BM.detach().float()
        log_p_BN = rollout.output.log_p_BN
        loss = sampling_loss(log_p_BN, plan.predict_BM, reward_BM)
        entropy = ppo.entropy(log_p_BN.detach()).mean() / math.log(self.tokens)
        metrics = {"sampling_loss": loss, "entropy": entropy, "reward": reward_BM.mean()}
        return Lesson(metrics, loss=self.config.weight * loss)
