"""A latent regressor and the decoders behind it, so that the encoder only encodes.

The regressor guesses the latents of hidden tokens from those of the visible ones; decoders turn
the guesses into targets and never see a visible token. The three-part design is CAE's (Chen et al.
2022, arXiv 2202.03026), which MAM2 (Song et al. 2022, arXiv 2210.05234) takes to video with one
decoder per target. The formulae are those of CAE's published code (Atten4Vis/CAE:
models/modeling_cae_helper.py, `RegressorBlock`, `LatentRegresser` and `Decoder`, and
models/modeling_cae.py). Different here: positions run over time and space (`sine_cosine_table`),
and decoders have blocks without layer-scale and may be narrower than the regressor.

Shapes: B batch, K visible, M predicted, X = K + M, N tokens of a clip, D regressor width, L latent
width, H heads, d = D / H, E decoder width, C target width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatscli.nn.positions import Grid, Positions
from tatscli.nn.vit import NORM_EPS, Block, initialize


class CrossBlock(nn.Module):
    """Cross-attention block that moves the queries on and leaves the visible latents alone.

    With u the queries and p their positions, z the visible latents and s theirs:

        a = u + gamma_attn * Attention(q = norm_q(u + p),
                                       k = norm_k([z + s, u + p]), v = norm_v([z, u]))
        b = norm_mlp(a)
        u' = b + gamma_mlp * MLP(b)

    Other than in a pre-norm block, the MLP's residual starts from the normalised b, not from a.

    Args:
        width: Width D of queries and latents.
        heads: Attention heads H.
        mlp_hidden: Inner width of the MLP; None is 4 D.
        layer_scale: Start value of both gammas, which are learned per channel.

    Raises:
        ValueError: If the width is not a multiple of the heads, or the layer-scale is not positive.
    """

    def __init__(
        self, width: int, heads: int, *, mlp_hidden: int | None = None, layer_scale: float = 0.1
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        if layer_scale <= 0:
            raise ValueError(f"layer-scale {layer_scale} closes the branches; give more than 0")
        self.width = width
        self.heads = heads
        hidden = 4 * width if mlp_hidden is None else mlp_hidden
        self.norm_q = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_k = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm_v = nn.LayerNorm(width, eps=NORM_EPS)
        self.q = nn.Linear(width, width)
        # A key bias would shift all scores of a query equally, which softmax ignores.
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.gamma_attn = nn.Parameter(torch.full((width,), layer_scale))
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gamma_mlp = nn.Parameter(torch.full((width,), layer_scale))

    def forward(
        self, queries_BMD: Tensor, position_BMD: Tensor, latents_BKD: Tensor, placed_BKD: Tensor
    ) -> Tensor:
        """Return the new queries: (B, M, D).

        Args:
            queries_BMD: The current guesses, without positions.
            position_BMD: Their positions.
            latents_BKD: The visible latents, without positions.
            placed_BKD: The visible latents plus their positions, the same for all blocks.
        """
        placed_BMD = queries_BMD + position_BMD
        # Joined after the projection: what the norms keep for the backward pass is then shared, by
        # queries and keys, and by all blocks for the visible latents.
        key_BXD = torch.cat([self.k(self.norm_k(x)) for x in (placed_BKD, placed_BMD)], dim=1)
        value_BXD = torch.cat([self.v(self.norm_v(x)) for x in (latents_BKD, queries_BMD)], dim=1)
        mixed_BHMd = F.scaled_dot_product_attention(
            self._split(self.q(self.norm_q(placed_BMD))),
            self._split(key_BXD),
            self._split(value_BXD),
        )
        attended_BMD = self.proj(mixed_BHMd.transpose(1, 2).flatten(2))
        normed_BMD = self.norm_mlp(queries_BMD + self.gamma_attn * attended_BMD)
        return normed_BMD + self.gamma_mlp * self.mlp(normed_BMD)

    def _split(self, tokens_BXD: Tensor) -> Tensor:
        """Split the width into heads: (B, H, X, d)."""
        return tokens_BXD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Regressor(nn.Module):
    """Guesses the latents of hidden tokens: mask tokens that read the visible latents.

    Hidden tokens that are not to be predicted are left out, as queries and as keys. Depth 0
    returns the mask token for each one, without norm or position, and has no other parameter: it
    does not look at the latents, so decoders that see no visible token learn nothing from a clip
    through it.

    Args:
        width: Width D of the regressor.
        depth: Cross-attention blocks.
        heads: Attention heads of a block.
        grid: Tokens of a clip along time, height and width.
        latent_width: Width L of the encoder's latents; None is D. If it differs from D, a linear
            map and a LayerNorm come first.
        mlp_hidden: Inner width of the MLPs; None is 4 D.
        layer_scale: Start value of the learned scales of the residual branches.

    Raises:
        ValueError: If the depth is negative, and as `CrossBlock`.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        grid: Grid,
        latent_width: int | None = None,
        mlp_hidden: int | None = None,
        layer_scale: float = 0.1,
    ) -> None:
        super().__init__()
        check_depth(depth)
        self.width = width
        self.depth = depth
        self.latent_width = width if latent_width is None else latent_width
        self.mlp_hidden = 4 * width if mlp_hidden is None else mlp_hidden
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            CrossBlock(width, heads, mlp_hidden=self.mlp_hidden, layer_scale=layer_scale)
            for _ in range(depth)
        )
        # No parameters that depth 0 would leave without gradient.
        adapts = depth > 0 and self.latent_width != width
        self.adapter = (
            nn.Sequential(nn.Linear(self.latent_width, width), nn.LayerNorm(width, eps=NORM_EPS))
            if adapts
            else nn.Identity()
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS) if depth > 0 else nn.Identity()
        self.positions = Positions(grid, width)
        initialize(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def adapt(self, latents_BKL: Tensor) -> Tensor:
        """Bring latents to the regressor's width: (B, K, D); as they are where L = D.

        An alignment loss sends the encoder's latents of hidden tokens through the same map before
        it compares them with the regressed ones.
        """
        adapted_BKD: Tensor = self.adapter(latents_BKL)
        return adapted_BKD

    def forward(self, latents_BKL: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> Tensor:
        """Return the regressed latents of the tokens `predict_BM`: (B, M, D).

        Args:
            latents_BKL: The encoder's normalised latents of the visible tokens.
            visible_BK: Which tokens these are.
            predict_BM: Which tokens to regress.
        """
        queries_BMD = self.mask_token.repeat(*predict_BM.shape, 1)
        if self.depth == 0:
            return queries_BMD
        latents_BKD = self.adapt(latents_BKL)
        placed_BKD = latents_BKD + self.positions(visible_BK)
        position_BMD = self.positions(predict_BM)
        for block in self.blocks:
            queries_BMD = block(queries_BMD, position_BMD, latents_BKD, placed_BKD)
        return self.norm(queries_BMD)


class MaskedDecoder(nn.Module):
    """From regressed latents to one target, or several that share it, by self-attention among
    hidden positions alone.

    The positions are added once, before the first block, at depth 0 too. (CAE's decoder without
    blocks leaves them out; here the depth changes the number of blocks and nothing else.)

    Args:
        width: Width E of the decoder.
        depth: Self-attention blocks; at 0 each token is decoded on its own.
        heads: Attention heads of a block.
        outs: Values C of each target; `head` is the output of the first.
        grid: Tokens of a clip along time, height and width.
        input_width: Width D of the regressed latents; None is E. If it differs from E, a linear
            map comes first.

    Raises:
        ValueError: If the depth is negative, or the width not a multiple of the heads.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        outs: Sequence[int],
        grid: Grid,
        input_width: int | None = None,
    ) -> None:
        super().__init__()
        check_depth(depth)
        self.width = width
        self.depth = depth
        self.outs = list(outs)
        self.input_width = width if input_width is None else input_width
        self.narrow = (
            nn.Identity() if self.input_width == width else nn.Linear(self.input_width, width)
        )
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outs[0])
        self.further = nn.ModuleList(nn.Linear(width, out) for out in outs[1:])
        self.positions = Positions(grid, width)
        initialize(self)

    def forward(self, regressed_BMD: Tensor, predict_BM: Tensor) -> list[Tensor]:
        """Return the predictions for the tokens `predict_BM`: (B, M, C) for each target."""
        tokens_BME = self.narrow(regressed_BMD) + self.positions(predict_BM)
        for block in self.blocks:
            tokens_BME = block(tokens_BME)
        tokens_BME = self.norm(tokens_BME)
        return [output(tokens_BME) for output in (self.head, *self.further)]


def check_depth(depth: int) -> None:
    """Raise ValueError unless there can be so many blocks."""
    if depth < 0:
        raise ValueError(f"{depth} blocks cannot be built; give at least 0")
