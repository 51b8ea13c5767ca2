"""`everest`: only tokens that change take part (EVEREST, Hwang et al. 2024, arXiv 2211.10636).

Shapes: B batch, N tokens (time-major), D width, K visible, M predicted.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Generator, Tensor

from tatscli.data.motion import MotionField
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, uniform_scores, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, embedding_change_BN


class EverestMasker(Masker):
    """Keeps the tokens whose patch embedding changes most, and shows a random part of them.

    Of the int(keep x tokens) kept, int(tokens x (1 - ratio)) are shown and the rest is predicted;
    all others are neither (sunilhoho/EVEREST, modeling_pretrain.py). Ours: ties, and clips of a
    single slice, which know no change, are decided at random.

    Args:
        grid: Tokens along time, height and width.
        ratio: Share of tokens not shown.
        keep: Share of tokens that are shown or predicted.

    Raises:
        RecipeError: If nothing would be shown or predicted.
    """

    needs_embeddings = True

    def __init__(self, grid: tuple[int, int, int], ratio: float, keep: float) -> None:
        super().__init__(grid, ratio)
        self.visible = visible_count(self.tokens, ratio)
        self.kept = share_count(self.tokens, keep)
        if self.kept <= self.visible:
            raise RecipeError(
                f"`mask.keep: {keep}` keeps {self.kept} of {self.tokens} tokens, and all are shown:"
                " none is left to predict",
                hint=f"keep at least {(self.visible + 1) / self.tokens:.4g}",
            )

    @classmethod
    def from_recipe(
        cls, config: Any, *, grid: tuple[int, int, int], width: int, lr_scale: float = 1.0
    ) -> Self:
        """Build from the recipe's `mask` section."""
        return cls(grid, config.ratio, config.keep)

    @property
    def predicted(self) -> int:
        return self.kept - self.visible

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: Generator | None = None,
    ) -> MaskPlan:
        """Keep the tokens that change most and divide them by chance."""
        shape, device = tokens_BND.shape[:2], tokens_BND.device
        ties_BN = uniform_scores(tuple(shape), device, generator)
        kept = descending(embedding_change_BN(tokens_BND, self.grid[0]), ties_BN)[:, : self.kept]
        split = uniform_scores((shape[0], self.kept), device, generator)
        kept = kept.gather(1, split.argsort(dim=1, stable=True))
        visible_BK, predict_BM = kept[:, : self.visible], kept[:, self.visible :]
        return MaskPlan(visible_BK.sort(dim=1).values, predict_BM.sort(dim=1).values)
