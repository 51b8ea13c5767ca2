"""Masked modelling beside classification: `finetune.auxiliary`.

"Limited Data, Unlimited Potential" (Das et al., WACV 2024, arXiv 2310.20704) trains both at once on
small data sets, at 0.9 of the loss for the masked pixels and 0.1 for the class. Here the masked
part is whatever the recipe's mask, head and targets say.

Shapes: B batch, C channels, T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tatscli.data.batch import Batch
from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.part import Lesson, Part, Weights
from tatscli.heads.base import HeadOutput
from tatscli.masking.plan import MaskPlan
from tatscli.nn.classifier import Classifier
from tatscli.recipe.derive import Schedule
from tatscli.recipe.schema import Recipe
from tatscli.system.joint import Joint
from tatscli.system.load import frozen_facts
from tatscli.system.system import build_system
from tatscli.targets import AllTargets
from tatscli.tasks.pretrain import start_from, step, work_of


class MaskedHalf:
    """The masked half of a joint training.

    Args:
        recipe: Says how to mask, guess and compare.
        classifier: The other half, whose encoder is shared.

    Attributes:
        share: Of the loss that is the masked half's.
        system: Mask x head x targets around the classifier's encoder.
        model: Both halves.
    """

    def __init__(self, recipe: Recipe, classifier: Classifier) -> None:
        assert recipe.finetune.auxiliary is not None
        self.share = recipe.finetune.auxiliary
        self.system = build_system(recipe, encoder=classifier.encoder)
        self.model = Joint(classifier, self.system.autoencoder)

    def start_from(self, init: Path | str) -> str:
        """Take the weights of a run, of encoder, head and sampler where they fit; say which.

        Averages of the encoder (`system.follow`) are left as they are.

        Raises:
            CheckpointError: If not even the encoder's fit.
        """
        return start_from(self.system, init)

    def to(self, device: torch.device) -> None:
        """Move everything to a device, ready to train."""
        self.system.to(device).train()

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return those of a mask that learns."""
        return self.system.masker.learners(schedule)

    def parts(self) -> dict[str, Part]:
        """Return what a checkpoint keeps beside the classifier."""
        return {
            "head": Weights(self.system.autoencoder.head),
            "masker": self.system.masker,
            "targets": AllTargets(self.system.targets),
        }

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Name the frozen networks.

        Raises:
            CheckpointError: If those of the run to resume were others.
        """
        return frozen_facts(self.system, resumed)

    def step(
        self,
        network: Callable[..., Any],
        batch: Batch,
        video_BCTHW: Tensor,
        draws: Draws,
    ) -> tuple[Lesson, list[Tensor]]:
        """Take both halves of a step.

        Args:
            network: The model, or what averages it over processes.
            batch: The clips as they were drawn, for the masked half.
            video_BCTHW: The same standardised and perhaps mixed, for the classifier.
            draws: Of the masks.

        Returns:
            The masked half as a pretraining step would give it, and the scores of every head of the
            classifier.
        """
        both = _Both(network, video_BCTHW)
        lesson = step(self.system.called(both), batch, draws)
        assert both.scores is not None
        return lesson, both.scores

    def join(self, masked: Lesson, loss: Tensor, loss_B: Tensor) -> Lesson:
        """Weigh the two losses; those of the classifier also come clip by clip, without graph.

        The metric `loss` leaves a sampler's own loss out, as in pretraining; `loss/masked` and
        `loss/class` are the two before they are weighted.
        """
        assert masked.loss is not None
        modelled = torch.as_tensor(masked.metrics["loss"])
        metrics = {
            **masked.metrics,
            "loss": self.share * modelled + (1 - self.share) * loss,
            "loss/masked": modelled,
            "loss/class": loss,
        }
        total = self.share * masked.loss + (1 - self.share) * loss
        assert masked.by_sample is not None
        by_sample = self.share * masked.by_sample + (1 - self.share) * loss_B
        return Lesson(metrics, masked.notices, total, by_sample)

    def modules(self) -> dict[str, nn.Module]:
        """Return mask, selection and targets."""
        system = self.system
        return {"mask": system.masker, "selection": system.predict, **system.targets}

    def work(self) -> float:
        """Estimate the floating-point operations of the masked half of a step on one video."""
        return work_of(self.system)


class _Both:
    """Stands in for the autoencoder: calls both halves at once, and keeps the class scores."""

    def __init__(self, network: Callable[..., Any], video_BCTHW: Tensor) -> None:
        self.network = network
        self.video_BCTHW = video_BCTHW
        self.scores: list[Tensor] | None = None

    def __call__(self, clip: Clip, plan: MaskPlan) -> HeadOutput:
        output: HeadOutput
        self.scores, output = self.network(self.video_BCTHW, clip, plan)
        return output
