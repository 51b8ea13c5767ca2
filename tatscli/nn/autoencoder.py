"""`MaskedAutoencoder`: encoder on the visible tokens, head on the predicted ones.

Shapes: B batch, N tokens, K visible, M predicted, P raw pixels of a token, C predicted channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from tatscli.nn.heads import DecoderHead
from tatscli.nn.vit import Encoder


class MaskedAutoencoder(nn.Module):
    """The trained part of every system; one module, so that DDP and compile wrap it whole.

    Args:
        encoder: Sees the visible tokens only; hidden patches are not even embedded.
        head: Maps (latents, visible, predict) to one prediction per target.
    """

    def __init__(self, encoder: Encoder, head: DecoderHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, cubes_BNP: Tensor, visible_BK: Tensor, predict_BM: Tensor) -> list[Tensor]:
        """Return one (B, M, C) prediction per target."""
        index_BKP = visible_BK.unsqueeze(-1).expand(-1, -1, cubes_BNP.shape[-1])
        tokens_BKD = self.encoder.embed(cubes_BNP.gather(1, index_BKP))
        return self.head(self.encoder(tokens_BKD, visible_BK), visible_BK, predict_BM)
