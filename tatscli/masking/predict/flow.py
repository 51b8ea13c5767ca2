"""`flow`: the tokens that move most, and some at random (a baseline of LVMAE)."""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.masking.predict.ranked import SalientRule
from tatscli.masking.saliency import known_motion


class FlowRule(SalientRule):
    """Follows the clips' motion where LVMAE ran RAFT; a clip without is predicted at random."""

    needs_motion = True

    def saliency_BN(self, clip: Clip) -> Tensor:
        """Return the speed of each token."""
        motion = known_motion(clip, "predict.kind: flow")
        speed_BN = motion.magnitude_BN(self.grid[0])
        return torch.where(motion.missing_B[:, None], 0.0, speed_BN)
