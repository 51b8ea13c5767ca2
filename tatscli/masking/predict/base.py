"""`PredictRule`: which of the hidden tokens the head predicts; the recipe's `predict`.

Fewer of them make the decoder's sequence shorter, and the loss counts only those. What the encoder
sees does not change, so any rule works with any mask.

Shapes: B batch, N tokens (time-major), D width, M to predict.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan


class PredictRule(nn.Module):
    """Chooses exactly `budget` of the tokens that a plan leaves to predict.

    Args:
        config: The recipe's `predict` section.
        form: How clips are cut.
        predicted: Tokens of each clip that the mask leaves to predict.

    Attributes:
        grid: Tokens along time, height and width, `(t, h, w)`.
        tokens: Their number.
        budget: Tokens of each clip that are predicted: by default all.
        needs_motion: `select` reads the clips' motion.
        needs_embeddings: `select` reads the patch embeddings of all tokens.
        cached: Under which name the store holds codes that `select` reads.
    """

    budget: int
    needs_motion: bool = False
    needs_embeddings: bool = False
    cached: str | None = None

    def __init__(self, config: Any, *, form: ClipForm, predicted: int) -> None:
        super().__init__()
        self.grid = form.grid
        self.tokens = form.tokens
        self.budget = predicted

    def select(self, plan: MaskPlan, clip: Clip, draws: Draws) -> MaskPlan:
        """Return the plan with `budget` of its tokens to predict, ascending, the same visible ones.

        The same draws make the same choice.
        """
        raise NotImplementedError

    def saliency_BN(self, clip: Clip) -> Tensor | None:
        """Return how salient each token of the clips is, (B, N); None where nothing is measured."""
        return None
