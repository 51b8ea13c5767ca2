"""`tokenizer`: the tokens that a tokenizer scores highest, and some at random: LVMAE's decoder
masking (Gundavarapu et al. 2024, arXiv 2411.13683).

Shapes: B batch, N tokens (time-major), M that the mask leaves to predict.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.predict.ranked import SalientRule
from tatscli.recipe import schema
from tatscli.tokenizer.asked import Asked


class TokenizerRule(SalientRule):
    """Follows the scores of a frozen tokenizer; for clips with equal scores the choice is
    random.

    The paper takes the highest or draws by the scores; ours draws without replacement, so that the
    budget stays exact.

    Raises:
        RecipeError: If the tokenizer has no scores, or its codes do not fill the grid of tokens.
        CheckpointError: If there is no such tokenizer.
    """

    def __init__(self, config: schema.PredictTokenizer, *, form: ClipForm, predicted: int) -> None:
        super().__init__(config, form=form, predicted=predicted)
        assert config.tokenizer is not None  # `Recipe.resolved_predict` has filled it in
        self.asked = Asked(
            config.tokenizer,
            form=form,
            by="`predict`: `tokenizer`",
            scale=config.scale or 1.0,
            cached=bool(config.cached),
        )
        if not self.asked.scored:
            raise RecipeError(
                f"`predict.kind: tokenizer` needs a tokenizer with scores, and "
                f"`{config.tokenizer.path}` has none",
                hint="a `tokenizer.kind: adaptive` has scores, unless its `keep` is null",
            )
        self.cached = self.asked.cached
        self.sampled = config.sampled

    def saliency_BN(self, clip: Clip) -> Tensor:
        """Return the mean score of each token's codes."""
        return self.asked.scores(clip)

    def preference_BM(self, salient_BM: Tensor, draws: Draws) -> Tensor:
        """Return the scores, or keys whose highest are a draw in proportion to them."""
        if not self.sampled:
            return salient_BM
        # A score of 0 has a key of -inf: it comes after all others, and by chance among its like.
        noise_BM = draws.gumbel(tuple(salient_BM.shape), salient_BM.device)
        return salient_BM.log() + noise_BM
