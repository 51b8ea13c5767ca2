"""`MaskedAutoencoder`: encoder on the visible tokens, head on the predicted ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.heads.base import Head, HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.nn.vit import Encoder


class MaskedAutoencoder(nn.Module):
    """The trained part of every system; one module, so that DDP wraps it whole.

    Args:
        encoder: Sees the visible tokens only; hidden patches are not even embedded.
        head: Guesses the others.
    """

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.leaves_parameters_out = head.ignores_latents

    def forward(self, clip: Clip, plan: MaskPlan) -> HeadOutput:
        """Predict the tokens that the plan asks for."""
        latents_BKD = self._encode(clip, plan.visible_BK)
        return self.head(clip, latents_BKD, plan, lambda index_BM: self.look(clip, index_BM))

    def _encode(self, clip: Clip, index_BK: Tensor) -> Tensor:
        return self.encoder(self.encoder.embed(clip.cubes(index_BK)), index_BK)

    @torch.no_grad()
    def look(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the encoder's latents of any tokens, without gradient."""
        return self._encode(clip, index_BM)
