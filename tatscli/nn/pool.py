"""Learned pooling: from the tokens of a clip to one feature.

Shapes: B batch, N tokens, D width, M queries, d width of a query's share of the values (D / M).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.engine.device import at_least_float32
from tatscli.errors import RecipeError
from tatscli.nn.vit import NORM_EPS, Block, Mlp


class EfficientPool(nn.Module):
    """Cross-attention of learned queries: efficient probing (Psomas et al. 2025, arXiv 2506.10178).

    A query is compared with the tokens themselves, without a projection of either; its share of
    the projected values is averaged by what it attends to, and the shares of all are joined. A
    LayerNorm comes first, which is ours: the tokens of an inner block, or of an encoder whose last
    norm is passed over, have any scale.

    Args:
        width: Token width D.
        queries: Learned queries M, which share D.
        key: The recipe key that says how many; for the message.

    Raises:
        RecipeError: If the queries cannot share the width.
    """

    def __init__(self, width: int, queries: int, *, key: str) -> None:
        super().__init__()
        if width % queries:
            fitting = [str(n) for n in range(1, 33) if width % n == 0]
            raise RecipeError(
                f"`{key}: {queries}` does not divide the encoder's width {width}",
                hint="each query reads its share of the width: choose " + ", ".join(fitting),
            )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.queries_MD = nn.Parameter(0.02 * torch.randn(queries, width))
        self.value = nn.Linear(width, width, bias=False)
        nn.init.trunc_normal_(self.value.weight, std=0.02)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return one feature for each clip: (B, D)."""
        tokens_BND = self.norm(tokens_BND)
        queries, width = self.queries_MD.shape
        score_BMN = self.queries_MD @ tokens_BND.transpose(1, 2) * width**-0.5
        value_BMNd = self.value(tokens_BND).unflatten(2, (queries, -1)).transpose(1, 2)
        weight_BM1N = at_least_float32(score_BMN).softmax(-1).to(value_BMNd.dtype).unsqueeze(2)
        return (weight_BM1N @ value_BMNd).flatten(1)


class JepaPool(nn.Module):
    """The pooling of V-JEPA 2's probes (Assran et al. 2025, arXiv 2506.09985, section 4): blocks of
    self-attention, then one learned query that attends to all tokens, with an MLP behind it.

    Its tensors begin as theirs do: normal of deviation 0.02, and the last layer of each branch
    smaller by sqrt(2 x the number of its block). The biases of the attention are those of our
    blocks, which is VideoMAE's choice: on queries and values only.

    Args:
        width: Token width D.
        heads: Attention heads of every block.
        blocks: Blocks in all, the last of which is the cross-attention.
    """

    def __init__(self, width: int, heads: int, *, blocks: int = 4) -> None:
        super().__init__()
        self.heads = heads
        stack = [Block(width, heads) for _ in range(blocks - 1)]
        self.blocks = nn.ModuleList(stack)
        self.queries_MD = nn.Parameter(torch.empty(1, width))
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.queries_MD, std=0.02)
        ends = [(block.attn.proj, block.mlp.fc2) for block in stack]
        for number, branches in enumerate([*ends, (self.proj, self.mlp.fc2)], start=1):
            for last in branches:
                last.weight.data.div_((2 * number) ** 0.5)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return one feature for each clip: (B, D)."""
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        query_BMD = self.queries_MD.expand(len(tokens_BND), -1, -1)
        query_BHMd = self._by_head(self.query(query_BMD))
        key_BND, value_BND = self.key_value(self.norm1(tokens_BND)).chunk(2, dim=-1)
        found_BHMd = F.scaled_dot_product_attention(
            query_BHMd, self._by_head(key_BND), self._by_head(value_BND)
        )
        query_BMD = query_BMD + self.proj(found_BHMd.transpose(1, 2).flatten(2))
        return (query_BMD + self.mlp(self.norm2(query_BMD))).flatten(1)

    def _by_head(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND.unflatten(2, (self.heads, -1)).transpose(1, 2)
