"""`everest`: the tokens whose patch embedding changes most, and some at random.

EVEREST's rule (Hwang et al. 2024, arXiv 2211.10636) as a baseline of LVMAE.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.masking.predict.ranked import SalientRule
from tatscli.masking.saliency import embedding_change_BN


class EverestRule(SalientRule):
    """Follows the patch embeddings; a clip of a single slice is predicted at random."""

    needs_embeddings = True

    def saliency_BN(self, clip: Clip) -> Tensor:
        """Return the change of each token's embedding."""
        return embedding_change_BN(clip.tokens_BND, self.grid[0])
