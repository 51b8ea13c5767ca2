"""The ViT encoder in VideoMAE's exact layout (Tong et al. 2022, arXiv 2203.12602).

Shapes: B batch, C channels, T frames, N tokens of a clip, K tokens given, P pixel values of a
token, D width, H heads. Tokens are time-major: index = (t * h + row) * w + column.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.data.clip import cut, pick
from tatscli.nn.positions import Positions
from tatscli.recipe import schema

NORM_EPS = 1e-6

SIZES: dict[str, tuple[int, int, int, int]] = {
    "nano": (128, 6, 4, 512),
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
    "giant": (1408, 40, 16, 6144),
}
"""Width, depth, heads and inner width of the MLP by name; small to giant are published (giant is
the ViT-g of VideoMAE V2, with patches of 14 pixels), nano and tiny are not."""


def initialize(module: nn.Module) -> None:
    """Set VideoMAE's start values: Xavier-uniform linear weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class PatchEmbed(nn.Module):
    """Linear map of a token's raw pixels; the weight keeps Conv3d's shape.

    A convolution whose stride is its kernel is a matrix product per cube, so hidden tokens need
    not be embedded.
    """

    asked_alone = True  # by masks that look at the embeddings before the model sees the clip

    def __init__(self, width: int, tubelet: int, patch: int) -> None:
        super().__init__()
        kernel = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel)

    def forward(self, cubes_BKP: Tensor) -> Tensor:
        """Embed the given cubes: (B, K, D)."""
        # The weight lies as (c, t, y, x), the values of a cube as (t, y, x, c).
        weight_DP = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)
        return F.linear(cubes_BKP, weight_DP, self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with biases on queries and values only."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Attend over the given tokens: (B, K, D)."""
        # A key bias would shift all scores of a query equally, which softmax ignores.
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(tokens_BKD, self.qkv.weight, bias)
        # Apart from each other, so that the backward pass joins their gradients in one copy.
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        mixed_BHKd = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed_BHKd.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; None is four times as wide inside."""

    def __init__(self, width: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or 4 * width
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Map each token on its own: (B, K, D)."""
        return self.fc2(F.gelu(self.fc1(tokens_BKD)))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole clips and scale it up for the others."""

    keep: Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.drops = probability > 0
        # A tensor, so that blocks that differ by nothing else are compiled once.
        self.register_buffer("keep", torch.tensor(1 - probability), persistent=False)

    def forward(self, branch_BKD: Tensor) -> Tensor:
        """Return the branch, zeroed for some clips while training."""
        if not self.training or not self.drops:
            return branch_BKD
        kept_B11 = branch_BKD.new_empty(branch_BKD.shape[0], 1, 1).bernoulli_(self.keep)
        return branch_BKD * (kept_B11 / self.keep)


class Block(nn.Module):
    """Pre-norm transformer block; `mlp` is the inner width of its MLP, by default four widths."""

    def __init__(
        self, width: int, heads: int, *, mlp: int | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, mlp)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BKD: Tensor) -> Tensor:
        """Return the transformed tokens: (B, K, D)."""
        tokens_BKD = tokens_BKD + self.drop_path(self.attn(self.norm1(tokens_BKD)))
        return tokens_BKD + self.drop_path(self.mlp(self.norm2(tokens_BKD)))


class Encoder(nn.Module):
    """ViT over any subset of a clip's tokens.

    Args:
        width: Token width D.
        depth: Blocks.
        heads: Attention heads of a block.
        grid: Tokens along time, height and width.
        tubelet: Frames in a token.
        patch: Height and width of a token in pixels.
        mlp: Inner width of the MLPs; None is four widths.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        grid: tuple[int, int, int],
        tubelet: int,
        patch: int,
        mlp: int | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.depth = depth
        self.heads = heads
        self.grid = grid
        self.tubelet = tubelet
        self.patch = patch
        self.mlp = mlp or 4 * width
        self.tokens = grid[0] * grid[1] * grid[2]
        self.patch_embed = PatchEmbed(width, tubelet, patch)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp=mlp, drop_path=drop_path * i / max(1, depth - 1))
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.positions = Positions(grid, width)
        initialize(self)

    def cubes(self, video_BCTHW: Tensor, index_BK: Tensor | None = None) -> Tensor:
        """Cut a standardised video into the pixels of tokens: (B, K, P); None means all, in order.

        Raises:
            ValueError: If the video does not fill the grid.
        """
        cubes_BNP = cut(video_BCTHW, self.grid, self.tubelet, self.patch)
        return cubes_BNP if index_BK is None else pick(cubes_BNP, index_BK)

    def embed(self, cubes_BKP: Tensor) -> Tensor:
        """Embed raw cubes, any subset of a clip's, without position: (B, K, D)."""
        return self.patch_embed(cubes_BKP)

    def features(
        self,
        tokens_BKD: Tensor,
        index_BK: Tensor | None = None,
        *,
        extra_BED: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Add positions and run the blocks, without the final norm: (B, K + E, D).

        Args:
            tokens_BKD: Embedded tokens.
            index_BK: Which tokens these are; None means all, in order.
            extra_BED: Further tokens, without a place in the clip, that come after the others.
            depth: Blocks to run, from the first; None runs all.
        """
        # In autocast the float32 table keeps the residual stream in float32.
        tokens_BKD = tokens_BKD + self.positions(index_BK)
        if extra_BED is not None:
            tokens_BKD = torch.cat([tokens_BKD, extra_BED], dim=1)
        for block in self.blocks if depth is None else self.blocks[:depth]:
            tokens_BKD = block(tokens_BKD)
        return tokens_BKD

    def by_block(self, tokens_BND: Tensor) -> Iterator[Tensor]:
        """Add positions to all tokens of clips and give what each block makes of them, in turn."""
        tokens_BND = tokens_BND + self.positions()
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
            yield tokens_BND

    def forward(self, tokens_BKD: Tensor, index_BK: Tensor | None = None) -> Tensor:
        """Return the normalised latents of the given tokens: (B, K, D)."""
        return self.norm(self.features(tokens_BKD, index_BK))


def build_encoder(
    model: schema.Model, grid: tuple[int, int, int], *, drop_path: float | None = None
) -> Encoder:
    """Build the encoder a recipe asks for; `drop_path`, if given, replaces the recipe's."""
    width, depth, heads, mlp = model_size(model)
    return Encoder(
        width=width,
        depth=depth,
        heads=heads,
        grid=grid,
        tubelet=model.tubelet,
        patch=model.patch,
        mlp=mlp,
        drop_path=model.drop_path if drop_path is None else drop_path,
    )


def model_size(model: schema.Model) -> tuple[int, int, int, int]:
    """Return width, depth, heads and inner MLP width, by name or as spelled out."""
    if model.size is not None:
        return SIZES[model.size]
    assert model.width is not None and model.depth is not None and model.heads is not None
    return model.width, model.depth, model.heads, model.mlp or 4 * model.width


def head_size(
    config: schema.DecoderHead | schema.RegressorHead, *, width: int, heads: int
) -> tuple[int, int]:
    """Return width and heads of a head's decoders: the recipe's, or half the encoder's."""
    return (
        width // 2 if config.width is None else config.width,
        max(1, heads // 2) if config.heads is None else config.heads,
    )
