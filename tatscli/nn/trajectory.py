"""Trajectory attention (Patrick et al. 2021, arXiv 2106.05392) in an exact, cheaper form.

Each query token first attends inside every slice on its own, which yields one "trajectory token"
per slice: where its content went. A second attention over time reads those, with the trajectory
token of the query's own slice as query.

The textbook form maps all N x T trajectory tokens to keys and values. Here the key map is folded
into the query, <q, W_k y> = <W_k^T q, y>, and the value map is applied after pooling,
sum_t a_t W_v y_t = W_v sum_t a_t y_t. The key bias adds the same number to every score and drops
out of the softmax; the value bias counts once because the weights sum to one.

Queries do not meet, so they are worked off some slices at a time, and what is large beside a
chunk's queries is computed again in the backward pass instead of being kept.

Shapes: B batch, N tokens (time-major), T slices, S tokens per slice, X tokens of a chunk of
slices, D width, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.engine.device import at_least_float32
from tatscli.nn.recompute import kept_values, recomputed
from tatscli.nn.vit import NORM_EPS, Mlp

KEPT_SLICES = 16
"""Longest clip whose trajectory tokens are kept for the backward pass by default."""

CHUNK = 2
"""Slices of queries at a time by default."""


class TrajectoryAttention(nn.Module):
    """Attention along implied motion paths; names and biases are Motionformer's.

    The values of the temporal stage are projected, as in the paper's formula; Motionformer's
    released default leaves that projection out by oversight. There is no class token.

    Args:
        width: Token width D.
        num_heads: Heads H.
        slices: Slices T of a clip; the tokens given must be a multiple.
        chunk: Slices of queries whose trajectory tokens exist at a time. The backward pass finds
            them again, for a fifth to a third more time, so that memory grows with N alone. None,
            the default, works so on clips of more than 16 slices, two slices at a time. Up to
            there it keeps all N x T x D of them, which adds little to the rest.

    Raises:
        ValueError: If the width is not a multiple of the heads, or a chunk holds no slice.
    """

    def __init__(
        self, width: int, num_heads: int, slices: int, *, chunk: int | None = None
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of {num_heads} heads")
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk of {chunk} slices holds no queries; give at least 1")
        self.num_heads = num_heads
        self.slices = slices
        self.chunk = CHUNK if chunk is None else chunk
        self.keeps = chunk is None and slices <= KEPT_SLICES
        self.scale = (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj_q = nn.Linear(width, width)
        self.proj_kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the mixed tokens: (B, N, D)."""
        mixed = [mixed_BXD for mixed_BXD, _ in self._chunks(tokens_BND)]
        return self.proj(torch.cat(mixed, dim=1))

    def attend(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed tokens (B, N, D) and, for pictures, attention over slices (B, H, N, T)."""
        mixed, weights = zip(*self._chunks(tokens_BND), strict=True)
        return self.proj(torch.cat(mixed, dim=1)), torch.cat(weights, dim=1).transpose(1, 2)

    def trajectories(self, tokens_BND: Tensor) -> Tensor:
        """Return each token's trajectory: its content as found in every slice, (B, N, T, D)."""
        query_BHNd, keys, values = self._qkv(tokens_BND)
        return torch.stack(find(query_BHNd, keys, values), dim=2)

    def _chunks(self, tokens_BND: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the mixed tokens before the last projection and the weights of each chunk."""
        query_BHNd, keys, values = self._qkv(tokens_BND)
        sites = tokens_BND.shape[1] // self.slices
        queries = query_BHNd.split(self.chunk * sites, dim=2)
        small = tokens_BND.numel() * (self.slices + 2 * self.num_heads) < kept_values()
        for first, query_BHXd in zip(range(0, self.slices, self.chunk), queries, strict=True):
            if self.keeps:
                found = find(query_BHXd, keys, values)
                yield recomputed(self._follow, found, first, small=small)
            else:
                yield recomputed(self._find_and_follow, query_BHXd, keys, values, first)

    def _qkv(self, tokens_BND: Tensor) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """Return queries (B, H, N, d), and keys and values of each slice (B, H, S, d)."""
        qkv = self.qkv(tokens_BND).unflatten(-1, (3, self.num_heads, -1))
        query_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        keys, values = (x.unflatten(2, (self.slices, -1)).unbind(2) for x in (k_BHNd, v_BHNd))
        return query_BHNd, keys, values

    def _find_and_follow(
        self, query_BHXd: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], first: int
    ) -> tuple[Tensor, Tensor]:
        return self._follow(find(query_BHXd, keys, values), first)

    def _follow(self, found: Sequence[Tensor], first: int) -> tuple[Tensor, Tensor]:
        """Attend over time along the trajectories of a chunk of queries.

        Args:
            found: The queries' trajectory tokens in each slice, T x (B, X, D).
            first: The slice of the first query.

        Returns:
            Mixed tokens before the last projection (B, X, D), and the weights (B, X, H, T).
        """
        paths_BXTD = torch.stack(tuple(found), dim=2)
        key_HdD, value_HdD = self.proj_kv.weight.unflatten(0, (2, self.num_heads, -1))
        value_bias_D = self.proj_kv.bias.chunk(2)[1]

        own_BXD = self._own_slice(paths_BXTD, first)
        query_BXHd = self.proj_q(own_BXD).unflatten(-1, (self.num_heads, -1)) * self.scale
        folded_BXHD = torch.einsum("bxhe,hed->bxhd", query_BXHd, key_HdD)
        weights_BXHT = at_least_float32(folded_BXHD @ paths_BXTD.transpose(-2, -1)).softmax(-1)
        pooled_BXHD = weights_BXHT.to(paths_BXTD.dtype) @ paths_BXTD
        mixed_BXHd = torch.einsum("bxhd,hed->bxhe", pooled_BXHD, value_HdD)
        return mixed_BXHd.flatten(2) + value_bias_D, weights_BXHT

    def _own_slice(self, paths_BXTD: Tensor, first: int) -> Tensor:
        """Pick each query's trajectory token in its own slice: (B, X, D)."""
        count = min(self.chunk, self.slices - first)
        by_slice = paths_BXTD.unflatten(1, (count, -1)).diagonal(offset=first, dim1=1, dim2=3)
        return by_slice.permute(0, 3, 1, 2).flatten(1, 2)


def find(query_BHXd: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Return the queries' trajectory tokens in each slice, T x (B, X, D).

    One attention call per target slice: fused kernels never hold the scores.
    """
    return [
        F.scaled_dot_product_attention(query_BHXd, k_BHSd, v_BHSd).transpose(1, 2).flatten(2)
        for k_BHSd, v_BHSd in zip(keys, values, strict=True)
    ]


class TrajectoryBlock(nn.Module):
    """Pre-norm block: trajectory attention, then an MLP.

    There is no dropout: a policy must score its own draws the same way twice. `chunk` as there.

    Attributes:
        graph_widths: Numbers a token that a backward pass needs, by the width; 0 on long clips,
            where attention is found again anyway, and not a third time.
    """

    def __init__(self, width: int, heads: int, slices: int, *, chunk: int | None = None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = TrajectoryAttention(width, heads, slices, chunk=chunk)
        self.graph_widths = 18 + 2 * slices + 2 * heads if self.attn.keeps else 0
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
