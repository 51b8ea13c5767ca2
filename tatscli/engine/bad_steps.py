"""Steps that are skipped because their numbers are bad: told, counted, too many in a row refused.

A step is bad if its loss or gradient is not finite, if its loss is far above those before
(`run.skip_above_std`, as in V-JEPA 2.1), or if fp16 overflows below a loss scale of 1. The device
decides, alike on all ranks; the host hears of it when a log line is due. Until then nothing is
lost: after `run.max_bad_steps` in a row no weight moves any more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.engine import distributed
from tatscli.engine.learner import Learner
from tatscli.engine.loss_scale import LossScale
from tatscli.engine.part import Lesson
from tatscli.recipe.schema import Run

WINDOW, ENOUGH = 300, 100
"""Good steps that the level of the losses is taken from, and how many make a level."""

GOOD, LOSS, GRADIENT, HIGH, SCALE, SEARCH = range(6)
"""What a step was; `SEARCH` is one that fp16 skips on its way to a loss scale, and no bad one."""

REASONS = {
    LOSS: "the loss is not finite",
    GRADIENT: "the gradient is not finite",
    HIGH: "the loss is far above recent losses",
    SCALE: "gradients overflow in fp16 even below a loss scale of 1",
}
REMEDIES = {
    HIGH: "raise `run.skip_above_std`, or lower the learning rate",
    SCALE: "`run.precision=bf16` needs no loss scale",
}
REMEDY = "lower `optim.base_lr`, set `optim.clip_grad=1`, or try `run.precision=fp32`"


class Fault(NamedTuple):
    """A step that was one bad step too many.

    Attributes:
        done: Optimiser steps before it: what a checkpoint of its weights says.
        in_a_row: Bad steps up to it.
        kind: What it was.
        limit: Loss above which it was too high.
        rows: Where the samples of this rank came from.
    """

    done: int
    in_a_row: int
    kind: int
    limit: float
    rows: list[int]

    @property
    def step(self) -> int:
        """Its number, from 1, as in `metrics.jsonl`."""
        return self.done + 1

    @property
    def what(self) -> str:
        """Say which steps were bad."""
        if self.in_a_row == 1:
            return f"step {self.step} is bad"
        return f"{self.in_a_row} bad steps in a row, the last at step {self.step}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is written about it."""
        limit = self.limit if math.isfinite(self.limit) else None
        return {"reason": REASONS[self.kind], "in_a_row": self.in_a_row, "limit": limit}

    @property
    def remedy(self) -> str:
        """What may help."""
        return REMEDIES.get(self.kind, REMEDY)


class BadSteps:
    """Decides which steps to skip; a part of the training, for level and count are resumed.

    Args:
        learners: What is updated, the model's own first, whose gradient must stay finite.
        run: The recipe's `run` section.
        device: Where the losses are.
        loss_scale: That of fp16, if there is one.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        run: Run,
        device: torch.device,
        loss_scale: LossScale | None = None,
    ) -> None:
        self.main = learners[0]
        self.run = run
        self.device = device
        self.loss_scale = loss_scale
        self._state = {
            "losses": torch.zeros(WINDOW if run.skip_above_std else 0, device=device),
            "good": torch.zeros((), dtype=torch.int64, device=device),
            "in_a_row": torch.zeros((), dtype=torch.int32, device=device),
            "skipped": torch.zeros((), dtype=torch.int64, device=device),
        }
        self._begun = False
        self._halted = torch.zeros((), dtype=torch.bool, device=device)
        for learner in learners:
            learner.halted = self._halted
        self._limit = torch.full((), torch.inf, device=device)
        self._loss = torch.zeros((), device=device)
        self._told: list[Tensor] = []
        self._rows: deque[list[int]] = deque(maxlen=run.log_every)

    def judge(self, losses: Sequence[Tensor]) -> Tensor:
        """Return whether a step is to be skipped for its loss, whatever its gradients are: boolean
        scalar on the device, alike on all ranks.

        Args:
            losses: Of its micro-batches.
        """
        with torch.no_grad():
            self._loss = distributed.mean(torch.stack([one.float() for one in losses]).mean())
            self._limit = self._highest()
            return (self._loss > self._limit) | ~self._loss.isfinite()

    def _highest(self) -> Tensor:
        """Return the loss above which a step is skipped: mean + k deviations of the last good."""
        deviations = self.run.skip_above_std
        if deviations is None:
            return self._limit
        losses, count = self._state["losses"], self._state["good"].clamp(max=WINDOW)
        known = torch.arange(WINDOW, device=self.device) < count
        number = count.clamp(min=1)
        mean = torch.where(known, losses, 0.0).sum() / number
        spread = (torch.where(known, losses - mean, 0.0).square().sum() / number).sqrt()
        return torch.where(count < ENOUGH, torch.inf, mean + deviations * spread)

    def note(self, norm: Tensor | None, rows: list[int]) -> dict[str, Tensor]:
        """Take down what became of a step, once all parts have heard of it; return its metrics.

        Args:
            norm: Of the model's gradient; None where there was none.
            rows: Where its samples came from.
        """
        self._rows.append(rows)
        self._begun = True
        state, zero = self._state, torch.zeros_like(self._state["in_a_row"])
        lost = zero.bool() if norm is None else ~norm.isfinite()
        kind = torch.where(lost, GRADIENT, zero)
        if self.loss_scale is not None:
            kind = torch.where(lost, SEARCH, zero)
            kind = torch.where(self.loss_scale.fell & (self.loss_scale.scale < 1), SCALE, kind)
        kind = torch.where(self._loss > self._limit, HIGH, kind)
        kind = torch.where(self._loss.isfinite(), kind, LOSS)
        good, search = kind == GOOD, kind == SEARCH
        row = torch.where(good, zero, state["in_a_row"] + ~search)
        left_out = zero.bool() if norm is None else self.main.left_out
        assert left_out is not None
        skipped = left_out & ~search
        if len(state["losses"]):
            here = torch.arange(WINDOW, device=self.device) == state["good"] % WINDOW
            state["losses"] = torch.where(here & good, self._loss, state["losses"])
        # Once halted, a step that would have been good again changes nothing.
        state["in_a_row"] = torch.where(self._halted, state["in_a_row"], row).int()
        state["good"] = state["good"] + good
        state["skipped"] = state["skipped"] + skipped
        self._told.append(torch.stack([kind.float(), row.float(), self._limit]))
        self._halted |= state["in_a_row"] >= self.run.max_bad_steps
        metrics = {"skipped": skipped.float()}
        return metrics if self.loss_scale is None else metrics | {"scale_skipped": search.float()}

    def check(self, done: int, reporter: Reporter | None) -> Fault | None:
        """Look at the steps since the last call, of which `done` are over; this waits.

        Args:
            done: Optimiser steps done.
            reporter: Told of bad steps; None in all processes but the first, which decide alike.

        Returns:
            The first that was one too many, if there is one.
        """
        told = torch.stack(self._told).tolist() if self._told else []
        self._told.clear()
        first = done - len(told)
        for which, reason in REASONS.items():
            steps = [
                str(first + place + 1) for place, (kind, *_) in enumerate(told) if kind == which
            ]
            if steps and reporter is not None:
                kept = "" if which == SCALE else ", so the weights were not updated"
                several = "s" if len(steps) > 1 else ""
                reporter.warn(f"step{several} {', '.join(steps)}: {reason}{kept}")
        for place, (kind, in_a_row, limit) in enumerate(told):
            if in_a_row >= self.run.max_bad_steps:
                rows = self._rows[place - len(told)]
                return Fault(first + place, int(in_a_row), int(kind), limit, rows)
        return None

    @property
    def skipped(self) -> int:
        """Steps skipped so far, without those on the way to a loss scale; this waits."""
        return int(self._state["skipped"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the last good losses and the counts; nothing before the first step."""
        return dict(self._state) if self._begun else {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned; without `run.skip_above_std` the losses are left out.

        Where the run had none so far, or may have fewer bad steps than it has seen, it begins with
        what is known.
        """
        kept = {name: one.to(self.device, copy=True) for name, one in tensors.items()}
        if len(kept["losses"]) != len(self._state["losses"]):
            kept["losses"], kept["good"] = self._state["losses"], torch.zeros_like(kept["good"])
        kept["in_a_row"] = kept["in_a_row"].clamp(max=self.run.max_bad_steps - 1)
        self._state = {name: kept[name] for name in self._state}
        self._begun = True

    def after_step(self, done: int, total: int) -> Lesson:
        """Say nothing: the loop itself asks."""
        return Lesson()
