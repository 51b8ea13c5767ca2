"""Heads: guess the hidden tokens from the latents of the visible ones.

Shapes: B batch, K visible, M predicted, D encoder width, E decoder width, C target width, N tokens
of a clip.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tatscli.errors import RecipeError
from tatscli.nn.flops import block_macs
from tatscli.nn.vit import NORM_EPS, Block, Encoder, initialize, run_blocks, sine_cosine_table
from tatscli.recipe import schema


class Decoder(nn.Module):
    """Narrow ViT whose last tokens become predictions; the names below it are VideoMAE's."""

    def __init__(self, *, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, out)

    def forward(self, tokens_BXE: Tensor, predicted: int, *, checkpointing: bool) -> Tensor:
        """Return predictions for the last `predicted` tokens: (B, M, C)."""
        tokens_BXE = run_blocks(self.blocks, tokens_BXE, checkpointing=checkpointing)
        return self.head(self.norm(tokens_BXE[:, -predicted:]))


class Branch(nn.Module):
    """From the latents to one target: projection, mask token, positions and decoder."""

    position_NE: Tensor

    def __init__(self, *, encoder: Encoder, width: int, depth: int, heads: int, out: int) -> None:
        super().__init__()
        self.checkpointing = encoder.checkpointing
        self.encoder_to_decoder = nn.Linear(encoder.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = Decoder(width=width, depth=depth, heads=heads, out=out)
        self.register_buffer(
            "position_NE", sine_cosine_table(encoder.tokens, width), persistent=False
        )
        initialize(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, latents_BKD: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> Tensor:
        """Return predictions (B, M, C); only the mask tokens of `predict_BM` enter the decoder."""
        seen_BKE = self.encoder_to_decoder(latents_BKD) + self.position_NE[visible_BK]
        asked_BME = self.mask_token + self.position_NE[predict_BM]
        return self.decoder(
            torch.cat([seen_BKE, asked_BME], dim=1),
            predict_BM.shape[1],
            checkpointing=self.checkpointing,
        )


class DecoderHead(nn.Module):
    """MAE decoder, one branch per target.

    Args:
        config: Width, depth and heads; null width and heads are half the encoder's (at least one
            head).
        encoder: Gives the latents' width, the token grid and whether to checkpoint.
        widths: Values per token of each target, one branch each.

    Raises:
        RecipeError: If the decoder's width is not a multiple of its heads.
    """

    def __init__(
        self, config: schema.DecoderHead, *, encoder: Encoder, widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.width = encoder.width // 2 if config.width is None else config.width
        self.depth = config.depth
        self.heads = max(1, encoder.heads // 2) if config.heads is None else config.heads
        if self.width % self.heads:
            raise RecipeError(
                f"`head.width: {self.width}` is not a multiple of `head.heads: {self.heads}`",
                hint="null takes half the encoder's for both",
            )
        self.widths = list(widths)
        self._encoder_width = encoder.width
        self.branches = nn.ModuleList(
            Branch(encoder=encoder, width=self.width, depth=self.depth, heads=self.heads, out=out)
            for out in self.widths
        )

    def forward(self, latents_BKD: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> list[Tensor]:
        """Return the predictions for the tokens of `predict_BM`, one (B, M, C) per target."""
        return [branch(latents_BKD, visible_BK, predict_BM) for branch in self.branches]

    def macs(self, visible: int, predicted: int) -> int:
        """Count multiply-accumulates per clip over all branches."""
        shared = visible * self._encoder_width * self.width
        shared += self.depth * block_macs(visible + predicted, self.width)
        return sum(shared + predicted * self.width * out for out in self.widths)


HEADS: dict[str, type[DecoderHead]] = {"decoder": DecoderHead}


def build_head(config: schema.Head, *, encoder: Encoder, widths: Sequence[int]) -> DecoderHead:
    """Build the head a recipe asks for."""
    return HEADS[config.kind](config, encoder=encoder, widths=widths)
