"""`decoder`: visible latents and mask tokens through a narrow ViT (VideoMAE, arXiv 2203.12602).

Shapes: B batch, K visible, M predicted, D encoder width, E decoder width, C values predicted, N
tokens of a clip, X tokens in the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.errors import RecipeError
from tatscli.heads.base import Encode, Head, HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.nn.positions import Positions
from tatscli.nn.vit import NORM_EPS, Block, Encoder, head_size, initialize
from tatscli.recipe import schema


class Decoder(nn.Module):
    """Narrow ViT whose last tokens become predictions; the names below it are VideoMAE's.

    With several values in `outs` there is a linear output for each, `head` the first of them.
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, outs: Sequence[int], mlp: int | None = None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp=mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, outs[0])
        self.further = nn.ModuleList(nn.Linear(width, out) for out in outs[1:])

    def forward(self, tokens_BXE: Tensor, predicted: int) -> list[Tensor]:
        """Return predictions for the last `predicted` tokens: (B, M, C) for each output."""
        for block in self.blocks:
            tokens_BXE = block(tokens_BXE)
        tokens_BME = self.norm(tokens_BXE[:, -predicted:])
        return [output(tokens_BME) for output in (self.head, *self.further)]


class Branch(nn.Module):
    """From the latents to one target, or several that share it: projection, mask token, positions
    and decoder."""

    def __init__(
        self,
        *,
        encoder: Encoder,
        width: int,
        depth: int,
        heads: int,
        outs: Sequence[int],
        mlp: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder_to_decoder = nn.Linear(encoder.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder = Decoder(width=width, depth=depth, heads=heads, outs=outs, mlp=mlp)
        self.positions = Positions(encoder.grid, width)
        initialize(self)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def forward(self, latents_BKD: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> list[Tensor]:
        """Return (B, M, C) for each target; only mask tokens of `predict_BM` enter the decoder."""
        seen_BKE = self.encoder_to_decoder(latents_BKD) + self.positions(visible_BK)
        asked_BME = self.mask_token + self.positions(predict_BM)
        return self.decoder(torch.cat([seen_BKE, asked_BME], dim=1), predict_BM.shape[1])


class DecoderHead(Head):
    """MAE decoder, one branch per target or, where they share it, one for all.

    Width and heads that the recipe leaves open are half the encoder's (at least one head).

    Raises:
        RecipeError: If the decoder's width is not a multiple of its heads.
    """

    config: schema.DecoderHead

    def __init__(
        self, config: schema.DecoderHead, *, encoder: Encoder, predicts: Sequence[int]
    ) -> None:
        super().__init__(config, encoder=encoder, predicts=predicts)
        width, heads = decoder_width(config, encoder)
        self.branches = nn.ModuleList(
            Branch(
                encoder=encoder,
                width=width,
                depth=config.depth,
                heads=heads,
                outs=outs,
                mlp=config.mlp,
            )
            for outs in decoded_together(config, self.predicts)
        )

    def forward(
        self, clip: Clip, latents_BKD: Tensor, plan: MaskPlan, encode: Encode
    ) -> HeadOutput:
        """Decode visible latents and mask tokens, once in every branch."""
        predictions: list[Tensor] = []
        for branch in self.branches:
            predictions += branch(latents_BKD, plan.visible_BK, plan.predict_BM)
        return HeadOutput(predictions)


def decoder_width(
    config: schema.DecoderHead | schema.RegressorHead, encoder: Encoder
) -> tuple[int, int]:
    """Return width and heads of a head's decoders.

    Raises:
        RecipeError: If the width is not a multiple of the heads.
    """
    width, heads = head_size(config, width=encoder.width, heads=encoder.heads)
    if width % heads:
        raise RecipeError(
            f"`head.width: {width}` is not a multiple of `head.heads: {heads}`",
            hint="null takes half the encoder's for both",
        )
    return width, heads


def decoded_together(
    config: schema.DecoderHead | schema.RegressorHead, predicts: Sequence[int]
) -> list[list[int]]:
    """Return what each of a head's decoders predicts: that of all targets, or of one each."""
    return [list(predicts)] if config.shared else [[out] for out in predicts]
