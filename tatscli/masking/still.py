"""`still`: shows moving tokens, and the first of every run of still ones (after Run-Length
Tokenization).

RLT (Choudhury et al. 2024, arXiv 2411.05222) leaves out tokens that repeat the one at their site a
slice before, by a threshold on the change of pixels; the first slice always stays. Ours: an exact
count, so that batches stay rectangular; the clips' motion (`data.motion`, of which `framediff` is
the change of pixels); and no code for the length of a run.

Shapes: B batch, N tokens (time-major), S sites of a slice, K visible.
"""

from __future__ import annotations

from typing import Any

import torch

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.base import Masker
from tatscli.masking.draw import in_tubes_BN, visible_count
from tatscli.masking.plan import MaskPlan
from tatscli.masking.saliency import descending, known_motion


class StillMasker(Masker):
    """Shows the first slice, then the tokens of the others that move most; chance decides between
    equals.

    A clip without motion is masked as a tube as far as the exact count allows.
    """

    needs_motion = True

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__(config, grid=grid, width=width)
        self.visible = visible_count(self.tokens, config.ratio)

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Rank all tokens of a clip together.

        Raises:
            DataError: If there is no motion.
        """
        motion = known_motion(clip, "mask.kind: still")
        B, device, (slices, rows, columns) = len(clip), clip.device, self.grid
        sites_BS = draws.uniform((B, rows * columns), device)
        noise_BN = draws.uniform((B, self.tokens), device)
        first_N = torch.arange(self.tokens, device=device) < rows * columns
        speed_BN = motion.magnitude_BN(slices).masked_fill(first_N, torch.inf)
        moving_BK = descending(speed_BN, noise_BN)[:, : self.visible]
        tube_BN = in_tubes_BN(sites_BS, noise_BN).argsort(dim=1, stable=True)
        visible_BK = torch.where(motion.missing_B[:, None], tube_BN[:, : self.visible], moving_BK)
        return MaskPlan.from_visible(visible_BK, self.tokens)
