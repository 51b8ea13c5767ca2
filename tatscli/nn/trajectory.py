"""Trajectory attention (Patrick et al. 2021, arXiv 2106.05392) in an exact, cheaper form.

Each query token first attends inside every slice on its own, which yields one "trajectory token"
per slice: where its content went. A second attention over time reads those, with the trajectory
token of the query's own slice as query.

The textbook form maps all N x T trajectory tokens to keys and values. Here the key map is folded
into the query, <q, W_k y> = <W_k^T q, y>, and the value map is applied after pooling,
sum_t a_t W_v y_t = W_v sum_t a_t y_t. The key bias adds the same number to every score and drops
out of the softmax; the value bias counts once because the weights sum to one.

Shapes: B batch, N tokens (time-major), T slices, S tokens per slice, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.nn.flops import trajectory_macs
from tatscli.nn.vit import NORM_EPS, Mlp


class TrajectoryAttention(nn.Module):
    """Attention along implied motion paths; names and biases are Motionformer's.

    The values of the temporal stage are projected, as in the paper's formula; Motionformer's
    released default leaves that projection out by oversight. There is no class token.

    Args:
        width: Token width D.
        num_heads: Heads H.
        slices: Slices T of a clip; the tokens given must be a multiple.

    Raises:
        ValueError: If the width is not a multiple of the heads.
    """

    def __init__(self, width: int, num_heads: int, slices: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.slices = slices
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj_q = nn.Linear(width, width)
        self.proj_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the mixed tokens: (B, N, D)."""
        return self.attend(tokens_BND)[0]

    def attend(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed tokens (B, N, D) and, for pictures, attention over slices (B, H, N, T)."""
        paths_BNTD = self.trajectories(tokens_BND)
        own_BND = self._own_slice(paths_BNTD)
        key_HdD, value_HdD = self.proj_kv.weight.unflatten(0, (2, self.num_heads, -1))
        value_bias_Hd = self.proj_kv.bias.unflatten(0, (2, self.num_heads, -1))[1]

        query_BNHd = self.proj_q(own_BND).unflatten(-1, (self.num_heads, -1)) * self.scale
        folded_BNHD = torch.einsum("bnhe,hed->bnhd", query_BNHd, key_HdD)
        weights_BNHT = (folded_BNHD @ paths_BNTD.transpose(-2, -1)).softmax(dim=-1)
        pooled_BNHD = weights_BNHT.to(paths_BNTD.dtype) @ paths_BNTD
        mixed_BNHd = torch.einsum("bnhd,hed->bnhe", pooled_BNHD, value_HdD) + value_bias_Hd
        return self.proj(mixed_BNHd.flatten(2)), weights_BNHT.transpose(1, 2)

    def trajectories(self, tokens_BND: Tensor) -> Tensor:
        """Return each token's trajectory: its content as found in every slice, (B, N, T, D).

        One attention call per target slice: fused kernels never hold the N x N scores.
        """
        sites = tokens_BND.shape[1] // self.slices
        qkv = self.qkv(tokens_BND).unflatten(-1, (3, self.num_heads, -1))
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        keys = k_BHNd.unflatten(2, (self.slices, sites)).unbind(dim=2)
        values = v_BHNd.unflatten(2, (self.slices, sites)).unbind(dim=2)
        found = [
            F.scaled_dot_product_attention(q_BHNd, k_BHSd, v_BHSd).transpose(1, 2).flatten(2)
            for k_BHSd, v_BHSd in zip(keys, values, strict=True)
        ]
        return torch.stack(found, dim=2)

    def _own_slice(self, paths_BNTD: Tensor) -> Tensor:
        """Pick each token's trajectory token in its own slice: (B, N, D)."""
        by_slice = paths_BNTD.unflatten(1, (self.slices, -1))
        return by_slice.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)


class TrajectoryBlock(nn.Module):
    """Pre-norm block: trajectory attention, then an MLP.

    There is no dropout: a policy must score its own draws alike twice.
    """

    def __init__(self, width: int, heads: int, slices: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = TrajectoryAttention(width, heads, slices)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the transformed tokens: (B, N, D)."""
        tokens_BND = tokens_BND + self.attn(self.norm1(tokens_BND))
        return tokens_BND + self.mlp(self.norm2(tokens_BND))

    def macs(self, tokens: int) -> int:
        """Count multiply-accumulates per clip of `tokens` tokens."""
        width = self.norm1.normalized_shape[0]
        return trajectory_macs(tokens, width, self.attn.num_heads, self.attn.slices)
