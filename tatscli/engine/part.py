"""`Part`: whatever a training must save, resume, or tell that a step is over.

A module's weights, an optimiser's moments, a sampler with its memory, an averaged copy of a
network: checkpoint, `--resume` and `--init` treat all alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from tatscli.engine import distributed


class Lesson(NamedTuple):
    """What a part has to say after it learned, and what it still has to learn from.

    Attributes:
        metrics: Scalars by name; tensors stay where they are until a log line is due.
        notices: What the user should know.
        loss: To be added to the loss of the training, with its graph.
        by_sample: The loss of each sample of a batch, without graph: what `tats replay` shows.
    """

    metrics: Mapping[str, Tensor | float] = {}
    notices: Sequence[str] = ()
    loss: Tensor | None = None
    by_sample: Tensor | None = None


class Part(Protocol):
    """A piece of a training with a state of its own, kept in a file of the checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name; nothing, if there is none to keep."""

    def load(self, tensors: dict[str, Tensor], /) -> None:
        """Put back what `tensors` returned.

        Raises:
            KeyError, RuntimeError: If names or shapes are those of something else.
        """

    def after_step(self, done: int, total: int, /) -> Lesson:
        """Hear that optimiser step `done` of `total` is over."""


class Weights:
    """The weights of a module as a part.

    Args:
        module: Its whole state dict is kept.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def tensors(self) -> dict[str, Tensor]:
        """Return the state dict."""
        return dict(self.module.state_dict())

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load the state dict, every tensor of it."""
        load_weights(self.module, tensors)

    def after_step(self, done: int, total: int) -> Lesson:
        """Say nothing: an optimiser moves the weights."""
        return Lesson()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load whole weights, every one of a module, which may be shared out among processes.

    Raises:
        RuntimeError: If names or shapes are others.
    """
    own = module.state_dict()
    shared = {name: distributed.shared_as(one, own.get(name)) for name, one in tensors.items()}
    module.load_state_dict(shared)


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
