"""The networks of the learned samplers: a trunk over all tokens, an actor, perhaps a critic.

Shapes: B batch, N tokens (time-major), T slices, E encoder width, D sampler width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tatscli.engine.device import full_precision
from tatscli.nn.mha import MhaBlock
from tatscli.nn.recompute import pays, recomputed, recomputed_by_clip
from tatscli.nn.trajectory import TrajectoryBlock
from tatscli.nn.vit import NORM_EPS


class PolicyOutput(NamedTuple):
    """What the network says of a batch, in float32."""

    log_p_BN: Tensor  # log-probability of each token to be drawn first
    value_B: Tensor | None  # expected mean error of the hidden tokens, standardised


class Policy(nn.Module):
    """Scores tokens for visibility and predicts the clip's error.

    The actor's last layer starts at zero, so the first policy is exactly uniform: random masking.
    So does the critic's: at first it predicts the mean of the rewards so far.
    The position table is the sampler's own, learned from zero (as in AdaMAE, arXiv 2211.09120); the
    encoder's code is never seen.

    Args:
        grid: Tokens along time, height and width.
        inputs: Width E of the tokens given.
        width: Width D of the sampler; a linear map comes first where they differ.
        heads: Attention heads.
        trunk: Trajectory attention, or ordinary attention over all tokens.
        critic: On the actor's trunk, on one of its own, or none.
        floor: Share of a uniform distribution mixed into the policy.
        by_slice: Each slice gets the same share of the probability.
        dropout: Of the ordinary trunk.
        final_norm: Normalise the trunk's tokens before the actor.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int, int],
        inputs: int,
        width: int,
        heads: int,
        trunk: Literal["trajectory", "mha"] = "trajectory",
        critic: Literal["shared", "separate", "none"] = "shared",
        floor: float = 0.0,
        by_slice: bool = False,
        dropout: float = 0.0,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.slices = grid[0]
        self.tokens = grid[0] * grid[1] * grid[2]
        self.inputs = inputs
        self.width = width
        self.floor = floor
        self.by_slice = by_slice

        def make_trunk() -> TrajectoryBlock | MhaBlock:
            if trunk == "trajectory":
                return TrajectoryBlock(width, heads, grid[0])
            return MhaBlock(width, heads, dropout=dropout)

        self.input = nn.Identity() if inputs == width else nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.zeros(self.tokens, width))
        self.trunk = make_trunk()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if final_norm else nn.Identity()
        self.actor = nn.Linear(width, 1, bias=False)
        self.critic_trunk = make_trunk() if critic == "separate" else None
        trunks = 1 if self.critic_trunk is None else 2
        self.graph_values = self.tokens * width * self.trunk.graph_widths * trunks
        self.draws = dropout > 0
        level = nn.Linear(width, 1)
        layers = [nn.Linear(width, width), nn.GELU(), level]
        self.critic = nn.Sequential(*layers) if critic != "none" else None
        for part in (self.input, *layers):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.zeros_(self.actor.weight)
        nn.init.zeros_(level.weight)

    def forward(
        self, tokens_BND: Tensor, temperature: float = 1.0, *, later: bool = False
    ) -> PolicyOutput:
        """Score the patch embeddings of all tokens.

        Args:
            tokens_BND: The embeddings.
            temperature: A low one sharpens the policy.
            later: Other networks run before the backward pass, and need the memory: what is kept of
                this one is what goes into the trunks and what comes out; the backward pass computes
                the rest again. Graphs of few clips or few numbers are kept.
        """
        small = not (later and pays(len(tokens_BND), self.graph_values))
        trunks = recomputed_by_clip(
            self._trunks,
            tokens_BND,
            values=self.graph_values,
            small=small,
            random=self.draws and self.training,
        )
        # Half precision rounds logits too coarsely and lets small probabilities vanish.
        with full_precision(tokens_BND.device):
            logits_BN, value_B = recomputed(self._heads, *trunks, small=small)
            return PolicyOutput(self._log_p_BN(logits_BN / temperature), value_B)

    def _trunks(self, tokens_BND: Tensor) -> tuple[Tensor, ...]:
        """Return what the actor's trunk makes of tokens, and what the critic's own does."""
        entry_BND = self.input(tokens_BND) + self.position
        if self.critic_trunk is None:
            return (self.trunk(entry_BND),)
        return self.trunk(entry_BND), self.critic_trunk(entry_BND)

    def _heads(self, *trunks: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the actor's logits (B, N), and what the critic says (B,) of its own trunk."""
        latents_BND = self.norm(trunks[0].float())
        logits_BN = self.actor(latents_BND).squeeze(-1)
        if self.critic is None:
            return logits_BN, None
        seen_BND = latents_BND if len(trunks) == 1 else self.norm(trunks[1].float())
        return logits_BN, self.critic(seen_BND.mean(dim=1)).squeeze(-1)

    def _log_p_BN(self, logits_BN: Tensor) -> Tensor:
        groups = self.slices if self.by_slice else 1
        log_p_BN = logits_BN.unflatten(1, (groups, -1)).log_softmax(dim=-1).flatten(1)
        log_p_BN = log_p_BN - math.log(groups)
        if not self.floor:
            return log_p_BN
        mixed = log_p_BN + math.log1p(-self.floor)
        even = torch.full_like(mixed, math.log(self.floor / self.tokens))
        return torch.logaddexp(mixed, even)

    def decay_groups(self, weight_decay: float, *, every: bool = False) -> list[dict[str, object]]:
        """Split for AdamW: the matrices of trunks and input decay, with `every` also the actor and
        the position table."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            inner = every or name.startswith(("trunk.", "critic_trunk.", "input."))
            (decayed if parameter.ndim > 1 and inner else free).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
