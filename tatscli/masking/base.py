"""`Masker`: the contract every mask fulfils (`docs/architecture.md`, contracts)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from tatscli.data.motion import MotionField
from tatscli.masking.plan import MaskPlan


class Masker(nn.Module):
    """Chooses the visible and the predicted tokens of each clip.

    Args:
        grid: Tokens along time, height and width, `(t, h, w)`.
        ratio: Share of tokens to hide, in (0, 1).

    Attributes:
        visible: Tokens shown of each clip; subclasses set it.
        predicted: Tokens of each clip that a plan gives to predict: by default all others.
        needs_motion: `plan` must be given the clips' motion.
        needs_embeddings: `plan` reads the patch embeddings; otherwise any (B, N, *) tensor will do
            and the hidden patches are never embedded.
        reaches_encoder: `learn` leaves the gradient of its loss on the patch embeddings in
            `token_gradient_BND`, for the encoder's own backward pass.
        token_gradient_BND: That gradient, or None.
        temperature: Sharpens (below 1) or flattens a learned policy for looking at it; None for
            masks without one.
    """

    visible: int
    needs_motion: bool = False
    needs_embeddings: bool = False
    reaches_encoder: bool = False
    token_gradient_BND: Tensor | None = None
    temperature: float | None = None

    def __init__(self, grid: tuple[int, int, int], ratio: float) -> None:
        super().__init__()
        self.grid = grid
        self.ratio = ratio
        self.tokens = grid[0] * grid[1] * grid[2]

    @property
    def predicted(self) -> int:
        return self.tokens - self.visible

    @classmethod
    def from_recipe(
        cls, config: Any, *, grid: tuple[int, int, int], width: int, lr_scale: float = 1.0
    ) -> Self:
        """Build from the recipe's `mask` section.

        Args:
            config: The section of this mask's kind.
            grid: Tokens along time, height and width.
            width: Width of the tokens `plan` will be given.
            lr_scale: Factor on the section's learning rate, if it has one.
        """
        return cls(grid, config.ratio)

    def plan(
        self,
        tokens_BND: Tensor,
        *,
        motion: MotionField | None = None,
        generator: torch.Generator | None = None,
    ) -> MaskPlan:
        """Choose a plan for a batch; the same generator state gives the same plan."""
        raise NotImplementedError

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> dict[str, float]:
        """Take the error of each predicted token of the last plan, update, and return metrics."""
        return {}

    def notices(self) -> list[str]:
        """Return what the user should know since the last call."""
        return []

    def schedule(self, step: int, total_steps: int) -> None:
        """Hear the position in training before each plan: learned maskers warm up and decay."""

    def scores_BN(self, tokens_BND: Tensor) -> Tensor | None:
        """Return the probability of each token to be shown, for pictures; None for fixed masks."""
        return None

    def macs(self) -> int:
        """Count the multiply-accumulates of one plan per clip; fixed masks cost nothing."""
        return 0

    def training_state(self) -> dict[str, Any]:
        """Return what `state_dict` lacks to resume exactly: flat, tensors and numbers only."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore what `training_state` returned."""
