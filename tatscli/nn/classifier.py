"""Action classifier on top of the encoder: mean pool, norm, linear (VideoMAE's fine-tuning form).

Shapes: B batch, C channels, T frames, N tokens, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from tatscli.nn.vit import NORM_EPS, Encoder


class Classifier(nn.Module):
    """Encoder over all tokens, mean pooling, `fc_norm`, dropout and a linear head.

    The encoder's own last norm is passed over, as published; it is frozen here so that every
    parameter that trains gets a gradient.

    Args:
        encoder: The pretrained (or fresh) encoder; used, not copied.
        classes: Number of labels.
        dropout: Dropout before the head.
        head_scale: Factor on the head's first weights.
    """

    def __init__(
        self, encoder: Encoder, classes: int, *, dropout: float = 0.0, head_scale: float = 0.001
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.norm.requires_grad_(False)
        self.fc_norm = nn.LayerNorm(encoder.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02, a=-0.02, b=0.02)
        self.head.weight.data.mul_(head_scale)
        nn.init.zeros_(self.head.bias)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Score a standardised video: (B, classes)."""
        tokens_BND = self.encoder.embed(self.encoder.cubes(video_BCTHW))
        pooled_BD = self.encoder.features(tokens_BND).mean(dim=1)
        return self.head(self.dropout(self.fc_norm(pooled_BD)))

    @property
    def layers(self) -> int:
        """The last layer, the head's: depth + 1."""
        return self.encoder.depth + 1

    def layer_of(self, name: str) -> int:
        """Return a parameter's layer, for layer decay: from 0, the patch embedding, to `layers`."""
        if name.startswith("encoder.patch_embed."):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return self.layers
