"""`latents`: the vectors a tokenizer's codes stand for (LVMAE, Gundavarapu et al. 2024, arXiv
2411.13683, regresses its tokenizer's).

Shapes: B batch, M tokens picked, R codes of a cube, D values of a vector, C = R * D.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.recipe import schema
from tatscli.targets.tokens import TokenizerTarget


class LatentsTarget(TokenizerTarget):
    """The vectors of a cube's codes, regressed."""

    config: schema.LatentsTarget

    def __init__(self, config: schema.LatentsTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.predicts = self.asked.per_cube * self.asked.width

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the vectors: float32 (B, M, C)."""
        return self.asked.vectors(clip, index_BM).flatten(2)

    def error(self, prediction_BMC: Tensor, values_BMC: Tensor) -> Tensor:
        """Return the mean squared error of each token: (B, M), float32."""
        return (prediction_BMC.float() - values_BMC).square().mean(dim=-1)
