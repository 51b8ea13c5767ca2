"""The transformer block of AdaMAE's sampler (Bandara et al. 2023, arXiv 2211.09120, section 3.2;
wgcban/adamae, `models/pretrain/vit.py`).

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.nn.vit import initialize

NORM_EPS = 1e-5  # PyTorch's default, which the published block leaves as it is


class MhaBlock(nn.Module):
    """Pre-norm block: attention over all tokens without biases on q, k, v, then an MLP.

    Args:
        width: Token width D.
        heads: Attention heads.
        dropout: After the projection and after the MLP. AdaMAE uses 0.1; with PPO it must be 0, or
            a policy would score its own draws differently twice.

    Attributes:
        graph_widths: Numbers a token that a backward pass needs, by the width.
    """

    graph_widths = 18

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.width = width
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        initialize(self)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the transformed tokens: (B, N, D)."""
        qkv = self.qkv(self.norm1(tokens_BND)).unflatten(-1, (3, self.heads, -1))
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        mixed_BND = (
            F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd).transpose(1, 2).flatten(2)
        )
        tokens_BND = tokens_BND + self.dropout(self.proj(mixed_BND))
        inner = F.gelu(self.fc1(self.norm2(tokens_BND)))
        return tokens_BND + self.dropout(self.fc2(inner))
