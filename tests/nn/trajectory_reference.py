"""Trajectory attention twice more, from the formula: in loops, and in the textbook's tensor form.

Both read the parameters of a `TrajectoryAttention` and share none of its code. Shapes as there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tatscli.nn.trajectory import TrajectoryAttention


def looped(attention: TrajectoryAttention, tokens_BND: Tensor) -> Tensor:
    """Sum over sites, slices and heads one number at a time (Motionformer, section 3.1)."""
    B, N, D = tokens_BND.shape
    T, H = attention.slices, attention.num_heads
    S, d = N // T, D // H
    out = torch.zeros_like(tokens_BND)
    for b in range(B):
        q, k, v = attention.qkv(tokens_BND[b]).split(D, dim=-1)
        path = torch.zeros(N, T, D, dtype=tokens_BND.dtype)
        for h in range(H):
            head = slice(h * d, (h + 1) * d)
            for n in range(N):
                for t in range(T):
                    scores = [
                        float(q[n, head] @ k[t * S + s, head]) / math.sqrt(d) for s in range(S)
                    ]
                    total = sum(math.exp(x - max(scores)) for x in scores)
                    for s in range(S):
                        weight = math.exp(scores[s] - max(scores)) / total
                        path[n, t, head] += weight * v[t * S + s, head]
        mixed = torch.zeros(N, D, dtype=tokens_BND.dtype)
        for n in range(N):
            q_own = attention.proj_q(path[n, n // S])
            k_path, v_path = attention.proj_kv(path[n]).split(D, dim=-1)
            for h in range(H):
                head = slice(h * d, (h + 1) * d)
                scores = [float(q_own[head] @ k_path[t, head]) / math.sqrt(d) for t in range(T)]
                total = sum(math.exp(x - max(scores)) for x in scores)
                for t in range(T):
                    mixed[n, head] += math.exp(scores[t] - max(scores)) / total * v_path[t, head]
        out[b] = attention.proj(mixed)
    return out


def textbook(attention: TrajectoryAttention, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Build every score, trajectory token, key and value; also return the temporal attention."""
    B, N, D = tokens_BND.shape
    T, H = attention.slices, attention.num_heads
    S, d = N // T, D // H
    q, k, v = attention.qkv(tokens_BND).view(B, N, 3, H, d).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(d)).view(B, H, N, T, S).softmax(dim=-1)
    path = torch.einsum("bhnts,bhtsd->bhntd", scores, v.reshape(B, H, T, S, d))
    path = path.permute(0, 2, 3, 1, 4).reshape(B, N, T, D)
    own = path[:, torch.arange(N), torch.arange(N) // S]
    q_own = attention.proj_q(own).view(B, N, H, d)
    k_path, v_path = attention.proj_kv(path).view(B, N, T, 2, H, d).unbind(3)
    weights = torch.einsum("bnhd,bnthd->bhnt", q_own, k_path) / math.sqrt(d)
    weights = weights.softmax(dim=-1)
    mixed = torch.einsum("bhnt,bnthd->bnhd", weights, v_path).reshape(B, N, D)
    return attention.proj(mixed), weights
