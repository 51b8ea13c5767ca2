"""From class probabilities to predictions: the best classes, and when they occur.

Shapes: V views, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class and its probability.

    Attributes:
        name: Name of the class.
        index: Its index among the run's classes.
        probability: Between 0 and 1.
        start: Seconds from the first frame of the video to the start of the window.
        end: Seconds to its end.
    """

    name: str
    index: int
    probability: float
    start: float
    end: float


def best_classes(
    score_L: Tensor, names: Sequence[str], *, top: int, start: float, end: float
) -> list[Prediction]:
    """Return the most probable classes, the best first; all, if there are fewer than `top`."""
    best = score_L.topk(min(top, len(names)))
    return [
        Prediction(names[index], index, value, start, end)
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


class Merged:
    """The mean of the probabilities of all views of a video, as `merge_views` takes it."""

    def __init__(self) -> None:
        self._total_L: Tensor | None = None
        self._views = 0

    def add(self, score_VL: Tensor) -> None:
        """Add views."""
        added_L = score_VL.double().sum(dim=0)
        self._total_L = added_L if self._total_L is None else self._total_L + added_L
        self._views += len(score_VL)

    @property
    def score_L(self) -> Tensor:
        """The mean so far, float32."""
        assert self._total_L is not None, "no views were added"
        return (self._total_L / self._views).to(torch.float32)
