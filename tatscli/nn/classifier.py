"""Action classifier on top of the encoder: pool, norm, linear; by default VideoMAE's form.

Shapes: B batch, C channels, T frames, N tokens of a clip, K of them, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.nn.batch_norm import BatchNorm
from tatscli.nn.pool import EfficientPool
from tatscli.nn.vit import NORM_EPS, Encoder
from tatscli.recipe import schema


class Classifier(nn.Module):
    """Encoder over all tokens or some, pooling, `fc_norm`, dropout and a linear head.

    The encoder's own last norm is passed over, as published; it is frozen here so that every
    parameter that trains gets a gradient.

    Args:
        encoder: The pretrained (or fresh) encoder; used, not copied.
        classes: Number of labels.
        dropout: Dropout before the head.
        head_scale: Factor on the head's first weights, of deviation 0.02.
        form: How tokens become one feature, and what norm comes before the linear head. None is
            VideoMAE's form: mean pooling and LayerNorm. With `cls` a learned token, which no
            pretraining knows, goes through all blocks behind the clip's own and is read at the end.

    Raises:
        RecipeError: If the queries of `form` cannot share the encoder's width.
    """

    cls_D: nn.Parameter | None

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        *,
        dropout: float = 0.0,
        head_scale: float = 0.001,
        form: schema.ClassHead | None = None,
    ) -> None:
        super().__init__()
        form = form or schema.ClassHead()
        width = encoder.width
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)
        self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.02, b=0.02)
        self.head.weight.data.mul_(head_scale)
        nn.init.zeros_(self.head.bias)
        # What VideoMAE's form lacks is None, and has no tensors in a checkpoint.
        self.batch_norm = BatchNorm(width) if form.norm == "batch" else None
        self.pool = (
            EfficientPool(width, form.queries, key="finetune.head.queries")
            if form.pool == "attention"
            else None
        )
        # A vector, so that it is not decayed; it has no position, which tells it from the others.
        self.cls_D = nn.Parameter(0.02 * torch.randn(width)) if form.pool == "cls" else None

    def forward(self, video_BCTHW: Tensor, visible_BK: Tensor | None = None) -> Tensor:
        """Score a standardised video: (B, classes); of some of its tokens, where they are named."""
        tokens_BKD = self.encoder.embed(self.encoder.cubes(video_BCTHW, visible_BK))
        feature_BD = self.fc_norm(self._pooled(tokens_BKD, visible_BK))
        if self.batch_norm is not None:
            feature_BD = self.batch_norm(feature_BD)
        return self.head(self.dropout(feature_BD))

    def _pooled(self, tokens_BKD: Tensor, visible_BK: Tensor | None) -> Tensor:
        """Run the blocks and make one feature of each clip: (B, D)."""
        if self.cls_D is not None:
            # `len` would fix the batch of an exported network.
            cls_B1D = self.cls_D.expand(tokens_BKD.shape[0], 1, -1)
            return self.encoder.features(tokens_BKD, visible_BK, extra_BED=cls_B1D)[:, -1]
        tokens_BKD = self.encoder.features(tokens_BKD, visible_BK)
        return tokens_BKD.mean(dim=1) if self.pool is None else self.pool(tokens_BKD)

    @property
    def layers(self) -> int:
        """The last layer, the head's: depth + 1."""
        return self.encoder.depth + 1

    def layer_of(self, name: str) -> int:
        """Return a parameter's layer, for layer decay: from 0, the patch embedding, to `layers`.

        Whatever is new belongs to the last one, the learned token as well: nothing of it is there
        to be kept.
        """
        if name.startswith("encoder.patch_embed."):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return self.layers
