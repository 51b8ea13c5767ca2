"""`simulated`: rectangles on smooth random paths, the control that moves without the content.

Shapes: B batch, T slices, K rectangles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.block import BlockMasker


class SimulatedMasker(BlockMasker):
    """Moves each rectangle along a cubic Bezier curve with four random control points."""

    def centres_BTK2(self, half_BK2: Tensor, clip: Clip, draws: Draws) -> Tensor:
        """Draw a curve for each rectangle and walk it at even steps of its parameter."""
        B, K, _ = half_BK2.shape
        slices = self.grid[0]
        points_BKP2 = draws.uniform((B, K, 4, 2), half_BK2.device) - 0.5
        u_T = torch.linspace(0, 1, slices, device=half_BK2.device)
        v_T = 1 - u_T
        weight_TP = torch.stack([v_T**3, 3 * v_T**2 * u_T, 3 * v_T * u_T**2, u_T**3], dim=1)
        size_2 = self.sites_S2[-1] - self.sites_S2[0]
        return torch.einsum("tp,bkpc->btkc", weight_TP, points_BKP2 * size_2)
