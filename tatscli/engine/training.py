"""`Training`: everything the loop needs, and where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.bad_steps import BadSteps
from tatscli.engine.checkpoint import Checkpoint, restore_part
from tatscli.engine.learner import Learner
from tatscli.engine.loss_scale import LossScale
from tatscli.engine.parallel import Copies
from tatscli.engine.part import Lesson, Part
from tatscli.recipe.derive import Schedule
from tatscli.recipe.schema import Run


class MicroBatch(Protocol):
    """What the loop asks of a batch."""

    @property
    def replaced(self) -> int:
        """Unreadable samples that were replaced."""

    @property
    def row_B(self) -> Tensor:
        """Where the samples came from; kept when a batch goes wrong."""

    def to(self, device: torch.device, /) -> Self:
        """Return the batch on a device."""


StepFunction = Callable[[Any, Draws], Lesson]


@dataclass(slots=True)
class Training:
    """Everything the loop needs, and where it stands.

    Attributes:
        model: What is trained; put in training mode, scored and saved.
        step: Maps a batch and its draws to loss and metrics of a micro-batch; a metric `loss`
            is logged in place of the loss.
        learners: What is updated, by name; the first is the model's own, whose gradient must stay
            finite.
        parts: What a checkpoint keeps, by the stem of its file, and what is told of every step.
        schedule: Steps and accumulation.
        batches: Maps the first optimiser step to an endless iterator of micro-batches.
        run: The recipe's `run` section.
        folder: The run folder.
        meta: What every checkpoint's `meta.json` says.
        world: This process among its peers.
        device: Where the model is.
        dtype: Autocast precision.
        reporter: Speaks to the user.
        synced: What `step` calls so that gradients are averaged, as `parallelize` returned it.
        copies: Moving averages that are shared out among processes as the model is.
        score: Scores the model after a pass, higher is better, with metrics; None when it is not
            yet time. A score of None is no score: there are metrics, and nothing to choose by.
        check: Looks at the averages of every log line, and raises if they show a fault.
        pictures: Draws what trackers are shown after a pass, by name, uint8 (H, W, 3); asked of the
            main process alone.
        describe: Says which clips this rank was given in a step, by the steps done before it and
            the rows it read, for the record of a bad step.
        flops: Floating-point operations that a clip takes, forward and backward; None where they
            are not known.
        done: Optimiser steps done.
        best: Best score so far.
        unscored: Whether a signal cut short the scoring of the pass that `done` ends.
        loss_scale: What losses are multiplied with in fp16; None in other precisions.
        bad_steps: Decides which steps are skipped.
    """

    model: nn.Module
    step: StepFunction
    learners: Mapping[str, Learner]
    parts: Mapping[str, Part]
    schedule: Schedule
    batches: Callable[[int], Iterator[MicroBatch]]
    run: Run
    folder: Path
    meta: dict[str, Any]
    world: distributed.World
    device: torch.device
    dtype: torch.dtype
    reporter: Reporter
    synced: nn.Module | None = None
    copies: Copies = ()
    score: Callable[[int], tuple[float | None, dict[str, float]] | None] | None = None
    check: Callable[[dict[str, float]], None] | None = None
    pictures: Callable[[int], Mapping[str, np.ndarray]] | None = None
    describe: Callable[[int, list[int]], list[dict[str, Any]]] | None = None
    flops: float | None = None
    done: int = 0
    best: float | None = None
    unscored: bool = False
    loss_scale: LossScale | None = field(init=False, default=None)
    bad_steps: BadSteps = field(init=False)

    def __post_init__(self) -> None:
        """Give the learners what they share, and keep it with the other parts."""
        learners = [*self.learners.values()]
        if self.dtype == torch.float16:
            self.loss_scale = LossScale(self.device)
            self.parts = {**self.parts, "loss_scale": self.loss_scale}
            for learner in learners:
                learner.loss_scale = self.loss_scale
        self.bad_steps = BadSteps(learners, self.run, self.device, self.loss_scale)
        self.parts = {**self.parts, "bad_steps": self.bad_steps}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this very training."""
        for name, part in self.parts.items():
            restore_part(name, part, checkpoint)
        self.done = checkpoint.step
        self.best = checkpoint.meta.get("best_score")
        self.unscored = checkpoint.meta.get("unscored", False)

    @property
    def last(self) -> int:
        """The optimiser step to stop after."""
        return min(self.schedule.total_steps, self.run.max_steps or self.schedule.total_steps)
