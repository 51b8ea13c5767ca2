"""`Masker`: the contract every mask fulfils (`docs/architecture.md`, contracts)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.learner import Learner
from tatscli.engine.part import Lesson
from tatscli.masking.plan import MaskPlan
from tatscli.recipe.derive import Schedule


class Masker(nn.Module):
    """Chooses the visible and the predicted tokens of each clip.

    It is a part of a training (`engine/part.py`): what a learned mask must keep, it saves itself.

    Args:
        config: The recipe's `mask` section.
        grid: Tokens along time, height and width, `(t, h, w)`.
        width: Width D of the patch embeddings.

    Attributes:
        visible: Tokens shown of each clip; subclasses set it.
        predicted: Tokens of each clip that a plan leaves to predict: by default all others.
        needs_motion: `plan` reads the clips' motion.
        needs_embeddings: `plan` reads the patch embeddings; otherwise hidden patches are never
            embedded.
        reaches_encoder: The loss of `learn` has a gradient on the patch embeddings.
        temperature: Sharpens (below 1) or flattens a learned policy for looking at it; None for
            masks without one.
    """

    visible: int
    needs_motion: bool = False
    needs_embeddings: bool = False
    reaches_encoder: bool = False
    temperature: float | None = None

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        self.tokens = grid[0] * grid[1] * grid[2]

    @property
    def predicted(self) -> int:
        return self.tokens - self.visible

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Choose a plan for each clip of a batch; the same draws give the same plan."""
        raise NotImplementedError

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> Lesson:
        """Take the error of each predicted token of the last plan, without gradient.

        Returns:
            Metrics, and a loss to be added to the training's if there is something to learn.
        """
        return Lesson()

    def scores_BN(self, clip: Clip) -> Tensor | None:
        """Return the probability of each token to be shown, for pictures; None for fixed masks."""
        return None

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Begin a training: return, by name, what of this mask has an optimiser of its own."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps; nothing for fixed masks."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""

    def after_step(self, done: int, total: int) -> Lesson:
        """Called after optimiser step `done` of `total`."""
        return Lesson()
