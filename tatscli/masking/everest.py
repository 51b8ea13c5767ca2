"""`everest`: only tokens that change take part (EVEREST, Hwang et al. 2024, arXiv 2211.10636).

Shapes: B batch, N tokens (time-major), D width, K visible, M predicted.
"""

from __future__ import annotations

from typing import Any

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.base import Masker
from tatscli.masking.draw import share_count, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, embedding_change_BN


class EverestMasker(Masker):
    """Keeps the tokens whose patch embedding changes most, and shows a random part of them.

    Of the int(keep x tokens) kept, int(tokens x (1 - ratio)) are shown and the rest is predicted;
    all others are neither (sunilhoho/EVEREST, modeling_pretrain.py). Ours: ties, and clips of a
    single slice, which know no change, are decided at random.

    Raises:
        RecipeError: If nothing would be shown or predicted.
    """

    needs_embeddings = True

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.visible = visible_count(self.tokens, config.ratio)
        self.kept = share_count(self.tokens, config.keep)
        if self.kept <= self.visible:
            raise RecipeError(
                f"`mask.keep: {config.keep}` keeps {self.kept} of {self.tokens} tokens, and all "
                "of them are shown: none is left to predict",
                hint=f"keep at least {(self.visible + 1) / self.tokens:.4g}",
            )

    @property
    def predicted(self) -> int:
        return self.kept - self.visible

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Keep the tokens that change most and divide them by chance."""
        ties_BN = draws.uniform((len(clip), self.tokens), clip.device)
        change_BN = embedding_change_BN(clip.tokens_BND, self.grid[0])
        kept = descending(change_BN, ties_BN)[:, : self.kept]
        split = draws.uniform((len(clip), self.kept), clip.device)
        kept = kept.gather(1, split.argsort(dim=1, stable=True))
        visible_BK, predict_BM = kept[:, : self.visible], kept[:, self.visible :]
        return MaskPlan(visible_BK.sort(dim=1).values, predict_BM.sort(dim=1).values)
