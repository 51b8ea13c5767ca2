"""`Target`: what predictions are compared with (`docs/architecture.md`, contracts).

Shapes: B batch, M predicted, C values predicted for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tatscli.data.clip import Clip, ClipForm
from tatscli.engine.part import Lesson, under
from tatscli.nn.vit import Encoder


class Target(nn.Module):
    """What hidden tokens should be predicted to be, and the error of a prediction.

    It is a part of a training (`engine/part.py`); most have no state.

    Args:
        config: The section of the recipe's `targets`.
        form: How clips are cut.

    Attributes:
        predicts: Values per token that a head must predict; what they are compared with may have
            another shape, such as an index for logits.
        weight: Weight of this target in the loss.
        needs_motion: `of` reads the clips' motion.
        rounds: `of` runs a network in the precision of the training; otherwise it runs without
            autocast. The error is always float32.
    """

    predicts: int
    needs_motion: bool = False
    rounds: bool = False

    def __init__(self, config: Any, *, form: ClipForm) -> None:
        super().__init__()
        self.config = config
        self.weight: float = config.weight

    def follow(self, encoder: Encoder) -> None:
        """Take the encoder that is trained.

        Called once it is built, before `predicts` is read, and again where it starts from weights
        of another run.
        """

    def of(self, clip: Clip, index_BM: Tensor) -> Any:
        """Return what the tokens of `index_BM` should be, in whatever form `error` takes."""
        raise NotImplementedError

    def error(self, prediction_BMC: Tensor, values: Any) -> Tensor:
        """Return the error of each predicted token: (B, M), float32."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps; nothing for most."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""

    def after_step(self, done: int, total: int) -> Lesson:
        """Called after optimiser step `done` of `total`."""
        return Lesson()


class AllTargets:
    """The targets of a system as one part of a training: each one's state under its name.

    Args:
        targets: By name.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self.targets = targets

    def tensors(self) -> dict[str, Tensor]:
        """Return what the targets keep, as `<target>/<name>`."""
        return {
            f"{name}/{key}": value
            for name, target in self.targets.items()
            for key, value in target.tensors().items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, target in self.targets.items():
            target.load(under(f"{name}/", tensors))

    def after_step(self, done: int, total: int) -> Lesson:
        """Tell every target; their metrics are named `<target>/<metric>`."""
        metrics: dict[str, Tensor | float] = {}
        notices: list[str] = []
        for name, target in self.targets.items():
            lesson = target.after_step(done, total)
            metrics |= {f"{name}/{key}": value for key, value in lesson.metrics.items()}
            notices += lesson.notices
        return Lesson(metrics, notices)
