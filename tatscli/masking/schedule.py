"""`schedule`: one mask early in training, another one later (after CL-MAE, arXiv 2308.16572).

CL-MAE lets a learned mask turn from a partner of the autoencoder into its adversary; the TATS paper
warms up with random masks. Ours: of the optimiser steps, a share that rises linearly uses the
second mask. Whole steps, and not clips of a batch, because a learned mask then learns from whole
batches, and because all processes take part in its update or none does. Which steps they are is
counted, not drawn: after any number of steps the second mask has had its share of them, to within
one step.

Shapes: B batch, K visible, M predicted, X candidates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.learner import Learner
from tatscli.engine.part import Lesson
from tatscli.masking.base import Masker
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.masking.saliency import known_motion
from tatscli.recipe import schema
from tatscli.recipe.derive import Schedule


class ScheduleMasker(Masker):
    """Uses `from_mask` in early steps and `to_mask` in later ones; outside of training the second.

    Both show equally many tokens. Where one would show more, as `tube` does whose count is rounded
    by slice, some of its visible tokens, drawn at random, are hidden and predicted with the others.

    Attributes:
        from_mask: The mask of the first steps.
        to_mask: That of the last ones.
        done: Optimiser steps that are over.
        total: Those of the whole training; None outside of one.
    """

    config: schema.ScheduleMask
    from_mask: Masker
    to_mask: Masker

    def __init__(self, config: Any, *, grid: tuple[int, int, int], width: int) -> None:
        from tatscli.masking import build_masker  # the table of all masks has this one in it

        super().__init__(config, grid=grid, width=width)
        first, second = (build_masker(one, grid=grid, width=width) for one in config.both)
        self.from_mask, self.to_mask = first, second
        self.needs_motion = first.needs_motion or second.needs_motion
        self.needs_embeddings = first.needs_embeddings or second.needs_embeddings
        self.reaches_encoder = first.reaches_encoder or second.reaches_encoder
        self.visible = min(first.visible, second.visible)
        self._predicted = min(self._predictable(one) for one in (first, second))
        self.done = 0
        self.total: int | None = None
        self._used_to = True  # by the last plan

    @property
    def predicted(self) -> int:
        return self._predicted

    @property
    def temperature(self) -> float | None:  # type: ignore[override]
        """That of the second mask, which pictures show."""
        return self.to_mask.temperature

    @temperature.setter
    def temperature(self, value: float | None) -> None:
        self.to_mask.temperature = value

    @property
    def sides(self) -> Mapping[str, Masker]:
        """Both masks by the name they are kept under."""
        return {"from_mask": self.from_mask, "to_mask": self.to_mask}

    @property
    def _planner(self) -> Masker:
        """The mask that made the last plan."""
        return self.to_mask if self._used_to else self.from_mask

    def turned(self, steps: int) -> int:
        """Count those of the first `steps` that use the second mask.

        The sum of their shares, min(1, step / (over x total)), rounded down.
        """
        if self.total is None:
            return steps
        rise = self.config.over * self.total
        rising = min(steps, math.floor(rise) + 1)
        return math.floor(rising * (rising - 1) / (2 * rise) + (steps - rising))

    def plan(self, clip: Clip, draws: Draws) -> MaskPlan:
        """Use the mask of this step, and bring its plan to the common counts.

        Raises:
            DataError: If either needs motion and the clips come without.
        """
        if self.needs_motion:  # from the first step on, whichever mask needs it
            known_motion(clip, f"mask.kind: {self.config.kind}")
        ended = not self.training or self.total is None
        self._used_to = ended or self.turned(self.done + 1) > self.turned(self.done)
        return self._evened(self._planner.plan(clip, draws), draws)

    def learn(self, plan: MaskPlan, error_BM: Tensor) -> Lesson:
        """Hand the errors to the mask that made the plan.

        Returns:
            Its lesson, and the metric `mask/to_share`: 1 in steps of the second mask, 0 in others.
        """
        lesson = self._planner.learn(plan, error_BM)
        metrics = {**lesson.metrics, "mask/to_share": float(self._used_to)}
        return lesson._replace(metrics=metrics)

    def scores_BN(self, clip: Clip) -> Tensor | None:
        """Return what the second mask says."""
        return self.to_mask.scores_BN(clip)

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Begin a training; one of the masks at most has a learner."""
        self.total = schedule.total_steps
        return self.from_mask.learners(schedule) | self.to_mask.learners(schedule)

    def tensors(self) -> dict[str, Tensor]:
        """Return how many steps are done, and what the masks keep as `<group>/<mask>.<name>`."""
        kept = {"done": torch.tensor(self.done)}
        for side, masker in self.sides.items():
            for key, value in masker.tensors().items():
                group, name = key.split("/", 1)
                kept[f"{group}/{side}.{name}"] = value
        return kept

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self.done = int(tensors["done"])
        for side, masker in self.sides.items():
            own = {}
            for key, value in tensors.items():
                group, _, name = key.partition("/")
                if name.startswith(f"{side}."):
                    own[f"{group}/{name.removeprefix(f'{side}.')}"] = value
            if own:
                masker.load(own)

    def after_step(self, done: int, total: int) -> Lesson:
        """Tell both masks, and count."""
        self.done = done
        first, second = (one.after_step(done, total) for one in self.sides.values())
        return Lesson({**first.metrics, **second.metrics}, [*first.notices, *second.notices])

    def _predictable(self, masker: Masker) -> int:
        """Count what a mask's plan can give to predict once it shows `visible` tokens.

        A learned mask is judged by what it hid itself, so its surplus of visible tokens is dropped.
        """
        surplus = 0 if isinstance(masker, LearnedMasker) else masker.visible - self.visible
        return masker.predicted + surplus

    def _evened(self, plan: MaskPlan, draws: Draws) -> MaskPlan:
        """Hide visible tokens by chance, and leave hidden ones out, until both counts are met."""
        visible_BK, predict_BM = plan.visible_BK, plan.predict_BM
        surplus, own = visible_BK.shape[1] - self.visible, predict_BM.shape[1]
        if surplus:
            shuffled_BK = _shuffled(visible_BK, 0, draws)
            visible_BK = shuffled_BK[:, surplus:].sort(dim=1).values
            predict_BM = torch.cat([predict_BM, shuffled_BK[:, :surplus]], dim=1)
        if predict_BM.shape[1] > self.predicted:
            # What the mask hid itself comes first.
            predict_BM = _shuffled(predict_BM, own, draws)[:, : self.predicted]
        return MaskPlan(visible_BK, predict_BM.sort(dim=1).values)


def _shuffled(index_BX: Tensor, first: int, draws: Draws) -> Tensor:
    """Bring tokens into random order, each clip's by itself, the `first` of them to the front."""
    noise_BX = draws.uniform(tuple(index_BX.shape), index_BX.device)
    noise_BX[:, :first] -= 1
    return index_BX.gather(1, noise_BX.argsort(dim=1, stable=True))
