"""`mgm_topk`: hides the tokens of every slice that move most.

This is how others describe MGM (LVMAE, arXiv 2411.13683), and how its authors mask later (TGM).

Shapes: B batch, T slices, S sites of a slice.
"""

from __future__ import annotations

from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.saliency import known_motion
from tatscli.masking.slices import SliceMasker


class MgmTopkMasker(SliceMasker):
    """Ranks the sites of a slice by speed; those that tie, as where nothing moves, as a tube."""

    needs_motion = True

    def rank_BTS(self, clip: Clip, noise_BTS: Tensor, draws: Draws) -> Tensor:
        """Rank by speed."""
        return (
            known_motion(clip, "mask.kind: mgm_topk").magnitude_BN(self.grid[0]).view_as(noise_BTS)
        )
