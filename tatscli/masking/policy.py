"""The sampler network of TATS: a trajectory-attention trunk, an actor and a critic.

Shapes: B batch, N tokens (time-major), E encoder width, D sampler width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tatscli.nn.trajectory import TrajectoryBlock
from tatscli.nn.vit import NORM_EPS


class PolicyOutput(NamedTuple):
    """What the network says of a batch, in float32."""

    log_p_BN: Tensor  # log-probability of each token to be drawn first
    value_B: Tensor  # expected mean error of the hidden tokens, standardised (`RunningReward`)


class Policy(nn.Module):
    """Scores tokens for visibility and foretells the clip's error.

    The actor's last layer starts at zero, so the first policy is exactly uniform: random masking.
    So does the critic's: it first foretells the level of the rewards so far.
    The position table is the sampler's own, learnt from zero (as in AdaMAE, arXiv 2211.09120); the
    encoder's code is never seen.

    Args:
        grid: Tokens along time, height and width.
        inputs: Width E of the tokens given.
        width: Width D of the sampler; a linear map comes first where they differ.
        heads: Attention heads.
    """

    def __init__(self, *, grid: tuple[int, int, int], inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = grid[0] * grid[1] * grid[2]
        self.inputs = inputs
        self.width = width
        self.input = nn.Identity() if inputs == width else nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.zeros(self.tokens, width))
        self.trunk = TrajectoryBlock(width, heads, grid[0])
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.actor = nn.Linear(width, 1, bias=False)
        level = nn.Linear(width, 1)
        self.critic = nn.Sequential(nn.Linear(width, width), nn.GELU(), level)
        for part in (self.input, *self.critic):
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.zeros_(self.actor.weight)
        nn.init.zeros_(level.weight)

    def forward(self, tokens_BND: Tensor) -> PolicyOutput:
        """Score the patch embeddings of all tokens."""
        trunk_BND = self.trunk(self.input(tokens_BND) + self.position)
        # Half precision rounds logits too coarsely and lets small probabilities vanish.
        with torch.autocast(tokens_BND.device.type, enabled=False):
            latents_BND = self.norm(trunk_BND.float())
            logits_BN = self.actor(latents_BND).squeeze(-1)
            value_B = self.critic(latents_BND.mean(dim=1)).squeeze(-1)
            return PolicyOutput(logits_BN.log_softmax(dim=-1), value_B)

    def decay_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Split for AdamW: only the matrices of trunk and input decay."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            matrix = parameter.ndim > 1 and name.startswith(("trunk.", "input."))
            (decayed if matrix else free).append(parameter)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]

    def macs(self) -> int:
        """Count multiply-accumulates of one forward pass per clip."""
        entry = 0 if self.inputs == self.width else self.tokens * self.inputs * self.width
        heads = self.tokens * self.width + self.width**2 + self.width
        return entry + self.trunk.macs(self.tokens) + heads
