"""`tube`: the same hidden sites in every slice (VideoMAE, Tong et al. 2022, arXiv 2203.12602)."""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.slices import SliceMasker


class TubeMasker(SliceMasker):
    """Hides int(ratio x sites) sites in all slices, as VideoMAE: 160 of 1,568 tokens show at 0.9.

    Raises:
        RecipeError: If the ratio is too small to hide a single site.
    """

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Rank at random, the same in all slices."""
        return -noise_BTS
