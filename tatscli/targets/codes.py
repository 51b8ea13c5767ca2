"""`codes`: which code a tokenizer gives each cube (MAM2, Song et al. 2022, arXiv 2210.05234).

MAM2's appearance target are the codes of a VQGAN; which one, and which frames of a cube, is not
published.

Shapes: B batch, M tokens picked, R codes of a cube, K codes to choose from, C = R * K logits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.recipe import schema
from tatscli.targets.tokens import TokenizerTarget


class CodesTarget(TokenizerTarget):
    """The codes of a cube, predicted as logits."""

    config: schema.CodesTarget
    chosen = "the likeliest code"

    def __init__(self, config: schema.CodesTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.predicts = self.asked.per_cube * self.asked.codebook_size

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the codes: int64 (B, M, R)."""
        return self.asked.codes(clip, index_BM)

    def codes_of(self, prediction_BMC: Tensor) -> Tensor:
        """Return the likeliest codes: int64 (B, M, R)."""
        return prediction_BMC.unflatten(2, (self.asked.per_cube, -1)).argmax(dim=-1)

    def error(self, prediction_BMC: Tensor, values_BMR: Tensor) -> Tensor:
        """Return the cross-entropy of each token, in nats, mean over its codes: (B, M), float32."""
        logits_XK = prediction_BMC.float().reshape(-1, self.asked.codebook_size)
        error_X = F.cross_entropy(logits_XK, values_BMR.flatten(), reduction="none")
        return error_X.view(values_BMR.shape).mean(dim=-1)
