"""Fine-tuning: action recognition on top of a pretrained encoder, or from scratch.

Shapes: B batch, C channels, T frames, K tokens kept, L classes.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.labelled import FinetuneClips
from tatscli.data.motion_source import MotionSource
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.parallel import Copies
from tatscli.engine.part import Lesson, Part, Weights
from tatscli.engine.schedule import lr_at
from tatscli.engine.session import Session
from tatscli.evaluation.scores import group_accuracy, merge_views, top_accuracy
from tatscli.evaluation.views import score_views
from tatscli.nn.averaged import Following, copies_in
from tatscli.nn.classifier import Classifier, build_classifier, refuse_lonely_views
from tatscli.nn.load import find_weights, load_encoder
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.system.drop import TokenDrop
from tatscli.system.joint import Joint
from tatscli.tasks.auxiliary import MaskedHalf
from tatscli.tasks.dropping import evaluate_drop, finetune_drop, motion_to_drop_by
from tatscli.tasks.labels import (
    build_loss,
    divided,
    training_rows,
    untrained_classes,
    validation_rows,
)
from tatscli.tasks.lengths import refuse_short
from tatscli.tasks.pretrain import refuse_faulty_plans, warn_of_unknown_motion
from tatscli.tasks.start import finetune_folder
from tatscli.tasks.training import Stage, run_training


def finetune(
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    init: Path | str | None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a classifier on the labelled videos of the recipe's store.

    Args:
        loaded: The merged recipe.
        reporter: Speaks to the user.
        init: Run, checkpoint or external weights to initialise the encoder from; None: random.
        out: Run folder; by default `runs/<recipe>-finetune` (or `-scratch`).
        resume: Continue the run in `out` exactly where it stopped.
        overwrite: Replace the run in `out`.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, `loss`, and where the recipe has a `val_split`,
        `val_top1` of the last pass and `best_score` over all passes.

    Raises:
        TatsError: If store, labels, recipe, run folder or weights cannot be used.
    """
    folder = Path(out) if out else finetune_folder(loaded, scratch=init is None)
    stage = Finetuning(loaded, Store.open(loaded.recipe.data.store), init)
    return run_training(stage, folder, reporter=reporter, resume=resume, overwrite=overwrite)


class Finetuning(Stage):
    """A classifier of labelled videos, alone or jointly with masked modelling on the same encoder.

    Args:
        loaded: The merged recipe.
        store: The data.
        init: Run, checkpoint or external weights to initialise the encoder from; None: random.
    """

    kind = "finetuned"
    networks = ("model", "classifier", "auxiliary", "drop", "loss")
    model: Classifier | Joint
    classifier: Classifier
    auxiliary: MaskedHalf | None = None
    average: Following[Classifier] | None = None
    drop: TokenDrop | None = None

    def __init__(self, loaded: LoadedRecipe, store: Store, init: Path | str | None) -> None:
        self.settings = settings = loaded.recipe.finetune
        store = divided(loaded.recipe, store)
        rows = training_rows(loaded.recipe, store)
        super().__init__(loaded, store, rows, settings.optim, repeats=settings.repeats)
        self.val_rows = validation_rows(loaded.recipe, store)
        sampling = settings.sampling or loaded.recipe.data.sampling
        refuse_short(store, [*rows, *self.val_rows], sampling, loaded.recipe.data.frames)
        self.init = init
        self.origin: str | None = None

    def build(self, here: Session, *, resume: bool) -> None:
        """Build the classifier, and the views it is trained and scored on.

        Raises:
            TatsError: If weights do not fit, or the recipe's head cannot be built or trained.
        """
        recipe, settings, store = self.recipe, self.settings, self.store
        refuse_lonely_views(recipe, world=here.world.size)
        self.classifier = build_classifier(
            recipe, classes=len(store.class_names), groups=store.class_groups
        )
        self.model = self.classifier
        if settings.auxiliary is not None:
            self.auxiliary = MaskedHalf(recipe, self.classifier)
            self.model = self.auxiliary.model
        self.classifier.freeze(settings.freeze)
        self.fresh = self.classifier.last_blocks(settings.reinit_blocks, frozen=settings.freeze)
        if settings.freeze != "none" and self.init is None and not resume:
            here.reporter.warn(
                f"`finetune.freeze: {settings.freeze}` freezes random weights: the run starts from "
                "scratch"
            )
        self.drop = finetune_drop(recipe, self.classifier.encoder)
        if self.init is not None and not resume:
            here.reporter.info(self._start_from(self.init))
        elif not resume:
            here.reporter.info("the encoder starts from random weights")
        if settings.ema is not None:  # only now: the average begins as what the training begins as
            self.average = Following(self.classifier, settings.ema)
        self.val_drop = evaluate_drop(recipe, self.scored.encoder) if self.val_rows else None
        self.mix, self.loss, self.weights = build_loss(recipe, store, self.rows)
        missing = untrained_classes(recipe, store, self.rows, self.val_rows)
        if missing is not None:
            here.reporter.warn(missing)
        self.clips = FinetuneClips(
            store,
            self.rows,
            recipe.data,
            settings,
            seed=recipe.run.seed,
            motion=self._motion(here),
            patch=recipe.model.patch,
        )
        self.val_views = EvalViews(
            store,
            self.val_rows,
            recipe.data,
            sampling=settings.sampling or recipe.data.sampling,
            motion=motion_to_drop_by(self.val_drop, store, self.val_rows, recipe, here),
            patch=recipe.model.patch,
        )

    @property
    def scored(self) -> Classifier:
        """What is validated and saved as the model: the averaged weights, if there are any."""
        return self.classifier if self.average is None else self.average.average.network

    def _start_from(self, init: Path | str) -> str:
        start = find_weights(init)
        self.origin = str(start.path)
        count = self.settings.reinit_blocks
        random = copy.deepcopy(self.fresh.state_dict())
        if self.auxiliary is not None:
            said = self.auxiliary.start_from(init)
        else:
            copied = load_encoder(self.classifier.encoder, start)
            said = f"the encoder starts from `{start.path}` ({copied})"
        self.fresh.load_state_dict(random)
        if self.auxiliary is not None:
            self.auxiliary.system.follow()
        return f"{said}; its last {count} blocks start from random weights" if count else said

    def _motion(self, here: Session) -> MotionSource | None:
        """Return the source of motion, if the masked half or `drop` follows motion."""
        if self.auxiliary is None or not self.auxiliary.system.follows_motion:
            return motion_to_drop_by(self.drop, self.store, self.rows, self.recipe, here)
        source = MotionSource(self.store, self.recipe.data.motion)
        warn_of_unknown_motion(self.auxiliary.system, source, self.rows, self.recipe, here)
        return source

    def to(self, device: torch.device) -> None:
        """Move everything to a device."""
        super().to(device)
        self.loss.to(device)
        if self.average is not None:
            self.average.average.to(device)
        if self.auxiliary is not None:
            self.auxiliary.to(device)
        if self.drop is not None:
            self.drop.to(device)

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return the model's, with a learning rate that decays layer by layer; and a sampler's."""
        optimizer = build_optimizer(
            self.model,
            self.settings.optim,
            layer_of=self.model.layer_of,
            layers=self.model.layers,
            layer_decay=self.settings.optim.layer_decay,
        )
        clip_grad = self.settings.optim.clip_grad
        learner = Learner(
            self.model, optimizer, lr=lambda step: lr_at(step, schedule), clip_grad=clip_grad
        )
        sampler = self.auxiliary.learners(schedule) if self.auxiliary is not None else {}
        return {"classifier": learner} | sampler

    def copies(self) -> Copies:
        """Return the classifier's average, and those of the masked half."""
        average = None if self.average is None else self.average.average
        masked = self.auxiliary.system.targets.values() if self.auxiliary is not None else ()
        return copies_in(average, *masked)

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return the classifier or its average as the model, whatever trains beside it, and the
        rest."""
        parts = super().parts(learners) | {"model": Weights(self.classifier)}
        if self.average is not None:
            parts |= self.average.parts()
        return parts | self.auxiliary.parts() if self.auxiliary is not None else parts

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Name the classes and what they are combinations of, and the weights it all began with."""
        origin = self.origin if resumed is None else resumed.meta.get("init")
        frozen = self.auxiliary.facts(resumed) if self.auxiliary is not None else {}
        groups = {key: one.model_dump(mode="json") for key, one in self.store.class_groups.items()}
        names = self.store.class_names
        return {"class_names": names, "class_groups": groups, "init": origin, **frozen}

    def about(self) -> dict[str, Any]:
        """Return shots, number of training videos, and class weights by head."""
        return {
            "shots": self.recipe.data.shots,
            "train_videos": len(self.rows),
            "class_weights": self.weights or None,
        }

    def step(self, batch: Batch, draws: Draws) -> Lesson:
        """Drop tokens, mix and classify; with `auxiliary`, also mask and predict."""
        data, metrics, kept_BK = self.recipe.data, dict[str, Tensor](), None
        if self.drop is not None:
            plan = self.drop.plan(batch.video_BCTHW, batch.motion, draws)
            kept_BK = plan.visible_BK
            metrics["plan_faults"] = plan.faulty_B(self.drop.form.tokens).float().mean()
        video_BCTHW = standardized(batch.video_BCTHW, data.mean, data.std)
        video_BCTHW, target_BL = self.mix(video_BCTHW, batch.label_B, draws=draws)
        if self.auxiliary is None:
            scores = self.network(video_BCTHW, kept_BK, by_head=True)
        else:
            masked, scores = self.auxiliary.step(self.network, batch, video_BCTHW, draws)
        losses = self.loss.by_clip(scores, target_BL)
        loss, by_head = self.loss.joined(losses)
        loss_B = torch.stack([*losses.values()]).sum(dim=0).detach()
        if self.auxiliary is None:
            return Lesson(metrics | by_head, loss=loss, by_sample=loss_B)
        joined = self.auxiliary.join(masked, loss, loss_B)
        return joined._replace(metrics={**joined.metrics, **by_head})

    def check(self, means: dict[str, float]) -> None:
        """Check that masks and selections have kept the rules of `MaskPlan`.

        Raises:
            RuntimeError: If not, which is a bug.
        """
        refuse_faulty_plans(means, self.recipe)

    def score(self, epoch: int, here: Session) -> tuple[float | None, dict[str, float]] | None:
        """Return top-1 on the validation split, after every so many passes and the last, and that
        of the groups that classes are combinations of."""
        settings, last = self.settings, epoch == self.settings.optim.epochs
        if settings.val_split is None or (epoch % settings.val_every and not last):
            return None
        views = score_views(self.scored, self.val_views, self.recipe, here, drop=self.val_drop)
        videos = merge_views(views)
        top1 = top_accuracy(videos, 1)
        if math.isnan(top1):
            here.reporter.warn(
                f"after pass {epoch}: scores of validation videos are not finite, so there is no "
                "validation accuracy"
            )
        groups = {name: group.of for name, group in self.store.class_groups.items()}
        by_group = group_accuracy(videos, groups)
        metrics = {"val_top1": top1, **{f"val_{key}_top1": by_group[key] for key in by_group}}
        return None if math.isnan(top1) else top1, metrics

    def splits(self) -> list[str | None]:
        """Return the splits that are trained and validated on."""
        validation = [self.settings.val_split] if self.settings.val_split else []
        return [self.settings.split, *validation]

    def modules(self) -> dict[str, nn.Module]:
        """Return the classifier, and the parts of the masked half."""
        beside = {} if self.auxiliary is None else self.auxiliary.modules()
        return {"": self.model, **beside}

    def work(self) -> float:
        """Count six operations for each weight and token."""
        weights = sum(parameter.numel() for parameter in self.classifier.parameters())
        masked = self.auxiliary.work() if self.auxiliary is not None else 0.0
        tokens = self.classifier.encoder.tokens if self.drop is None else self.drop.kept
        return 6.0 * tokens * weights + masked
