"""Pretraining: mask, encode visible tokens, predict hidden ones, and train a learned mask on the
errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.data.motion_source import MotionSource
from tatscli.draws import Draws
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.parallel import Copies
from tatscli.engine.part import Lesson, Part, under
from tatscli.engine.schedule import lr_at
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.masking.insight import mask_insight
from tatscli.masking.rl.reward import with_variance
from tatscli.nn.averaged import copies_in
from tatscli.nn.load import copy_weights, find_weights, fits, load_encoder
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.system.cost import count_parameters
from tatscli.system.load import frozen_facts
from tatscli.system.system import System, build_system
from tatscli.targets import AllTargets
from tatscli.tasks.lengths import refuse_short
from tatscli.tasks.tokenizer import train_tokenizer
from tatscli.tasks.training import Stage, run_training
from tatscli.tasks.training_pictures import MaskPictures
from tatscli.tasks.watch import Watcher, part_watched
from tatscli.visualize.text import Picture


def pretrain(
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    out: Path | str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the system, or the tokenizer, that a recipe describes.

    Args:
        loaded: The merged recipe.
        reporter: Speaks to the user.
        out: Run folder; by default `run.out`, else `runs/<recipe>`.
        init: Run, checkpoint or external weights to initialise from; optimiser state is not loaded.
        resume: Continue the run in `out` exactly where it stopped.
        overwrite: Replace the run in `out`.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, `loss` and the masker's last metrics.

    Raises:
        TatsError: If store, recipe, run folder or weights cannot be used.
    """
    folder = pretrain_folder(loaded, out)
    if loaded.recipe.tokenizer is not None:
        return train_tokenizer(
            loaded, folder, reporter=reporter, init=init, resume=resume, overwrite=overwrite
        )
    stage = Pretraining(loaded, Store.open(loaded.recipe.data.store), init, folder)
    return run_training(stage, folder, reporter=reporter, resume=resume, overwrite=overwrite)


class Pretraining(Stage):
    """A masked autoencoder, with a sampler if the mask is learned.

    Args:
        loaded: The merged recipe.
        store: The data.
        init: Run, checkpoint or external weights to initialise from.
        folder: The run folder, for pictures.
    """

    kind = "pretrained"
    networks = ("model", "system")

    def __init__(
        self, loaded: LoadedRecipe, store: Store, init: Path | str | None, folder: Path
    ) -> None:
        data = loaded.recipe.data
        every = store.part(data.split)
        refuse_short(store, every, data.sampling, data.frames)
        rows, self.held = part_watched(store, every, loaded.recipe.run.watch)
        super().__init__(loaded, store, rows, loaded.recipe.optim, repeats=data.repeats)
        self.init = init
        self.folder = folder

    def build(self, here: Session, *, resume: bool) -> None:
        """Build the system, and the clips with their motion.

        Raises:
            TatsError: If weights do not fit, or the clips cannot give what the mask needs.
        """
        recipe = self.recipe
        self.system = build_system(recipe)
        self.model = self.system.autoencoder
        if self.init is not None and not resume:
            here.reporter.info(start_from(self.system, self.init))
            self.system.follow()
        self.clips = clips = PretrainClips(
            self.store,
            self.rows,
            recipe.data,
            patch=recipe.model.patch,
            seed=recipe.run.seed,
            follows_motion=self.system.follows_motion,
            codes=self.system.cached_codes,
        )
        warn_of_unknown_motion(self.system, clips.motion_source, self.rows, recipe, here)
        if self.held and self.system.follows_motion:
            # If no fallback is allowed, fail now and not at the first evaluation.
            clips.motion_source.unknown([*self.rows, *self.held])
        self.watcher = (
            Watcher(self.store, self.rows, self.held, recipe, self.system)
            if recipe.run.watch is not None
            else None
        )
        every = recipe.run.track_pictures if recipe.run.track else None
        self.drawing = (
            MaskPictures(
                self.folder / "pictures",
                self.store,
                self.held or self.rows,
                recipe,
                every=every,
                motion=clips.motion_source,
            )
            if every is not None
            else None
        )

    def to(self, device: torch.device) -> None:
        """Move the system to a device, ready to train."""
        self.system.to(device).train()

    def learners(self, schedule: Schedule) -> dict[str, Learner]:
        """Return the autoencoder's, and the masker's."""
        main = Learner(
            self.model,
            build_optimizer(self.model, self.optim),
            lr=lambda step: lr_at(step, schedule),
            clip_grad=self.optim.clip_grad,
        )
        return {"autoencoder": main} | self.system.masker.learners(schedule)

    def copies(self) -> Copies:
        """Return the slow encoders that targets ask."""
        return copies_in(*self.system.targets.values())

    def parts(self, learners: dict[str, Learner]) -> dict[str, Part]:
        """Return model, optimiser, masker and targets."""
        system = self.system
        return super().parts(learners) | {
            "masker": system.masker,
            "targets": AllTargets(system.targets),
        }

    def facts(self, resumed: Checkpoint | None) -> dict[str, Any]:
        """Name the frozen networks, of which a checkpoint has no copy.

        Raises:
            CheckpointError: If those of the run to resume were others.
        """
        return frozen_facts(self.system, resumed)

    def step(self, batch: Batch, draws: Draws) -> Lesson:
        """Take `step`, with the autoencoder as it is wrapped."""
        return step(self.system.called(self.network), batch, draws)

    def score(self, epoch: int, here: Session) -> tuple[None, dict[str, float]] | None:
        """Evaluate on the held-out videos, every few epochs and after the last; nothing is selected
        by them."""
        if self.watcher is None or not self.watcher.due(epoch):
            return None
        found = self.watcher.look(self.system, here)
        words = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        here.reporter.info(f"epoch {epoch} of {self.optim.epochs}: {words}")
        return None, found

    def pictures(self, epoch: int, here: Session) -> dict[str, Picture]:
        """Draw, after some epochs, predictions on a held-out video, or else a training video."""
        if self.drawing is None or not self.drawing.due(epoch):
            return {}
        return self.drawing.draw(self.system, epoch, here)

    def check(self, means: dict[str, float]) -> None:
        """Check that masks and selections have kept the rules of `MaskPlan`.

        Raises:
            RuntimeError: If not, which is a bug.
        """
        refuse_faulty_plans(means, self.recipe)

    def modules(self) -> dict[str, nn.Module]:
        """Return encoder and head, mask, selection and targets."""
        system = self.system
        named = {"mask": system.masker, "selection": system.predict, **system.targets}
        return {"": self.model, **named}

    def work(self) -> float:
        """Count six operations for each weight and token."""
        return work_of(self.system)


def refuse_faulty_plans(means: dict[str, float], recipe: Recipe) -> None:
    """Take `plan_faults` out of the averages of a log line.

    Raises:
        RuntimeError: If there were any; it is a bug.
    """
    if means.pop("plan_faults", 0.0):
        drop = recipe.finetune.drop
        raise RuntimeError(
            f"`mask.kind: {recipe.mask.kind}` with `predict.kind: {recipe.predict.kind}`"
            + (f", or `finetune.drop.kind: {drop.kind}`," if drop is not None else "")
            + " produced token indices that are not ascending, disjoint and within the clip"
        )


def work_of(system: System) -> float:
    """Estimate the floating-point operations of a step on one video: six a weight and token."""
    seen = system.masker.visible
    head_tokens = seen + system.predict.budget
    encoder = seen * count_parameters(system.encoder)
    head = head_tokens * count_parameters(system.autoencoder.head)
    sampler = system.encoder.tokens * count_parameters(system.masker)
    return 6.0 * (encoder + head + sampler)


def step(system: System, batch: Batch, draws: Draws) -> Lesson:
    """Mask, predict and compare; a learned mask adds its own loss to the autoencoder's."""
    clip = system.clip_of(batch)
    found = system.errors(clip, draws)
    lesson = system.masker.learn(found.plan, found.error_BM.detach())
    metrics = {
        "loss": found.loss,  # without the sampler's, which is not a reconstruction error
        **found.metrics,
        **lesson.metrics,
        **mask_insight(found.plan, grid=system.form.grid, motion=batch.motion),
        "plan_faults": found.plan.faulty_B(system.form.tokens).float().mean(),
    }
    by_sample = found.error_BM.detach().mean(dim=1)
    if lesson.loss is None:
        return Lesson(metrics, lesson.notices, found.loss, by_sample)
    metrics[f"loss/{system.masker.config.kind}"] = lesson.loss
    return Lesson(metrics, lesson.notices, found.loss + lesson.loss, by_sample)


def warn_of_unknown_motion(
    system: System, source: MotionSource, rows: list[int], recipe: Recipe, here: Session
) -> None:
    """Warn of videos without motion, if anything follows motion, and name the fallback.

    Raises:
        DataError: If there are some and the recipe allows no fallback, or a target has nothing to
            predict.
    """
    if not system.follows_motion:
        return
    unknown = len(source.unknown(rows))  # on all ranks: it may refuse
    refuse_nothing_to_predict(system, recipe, unknown=unknown, videos=len(rows))
    if unknown:
        here.reporter.warn(motion_notice(system, recipe, unknown=unknown, videos=len(rows)))


def motion_notice(system: System, recipe: Recipe, *, unknown: int, videos: int) -> str:
    """Say what happens with videos without motion."""
    fallback = recipe.data.motion.fallback
    stand_ins = []
    if system.masker.needs_motion:
        stand_ins.append(f"`mask.kind: {recipe.mask.kind}` falls back to `{fallback}`")
    if system.predict.needs_motion:
        chance = "random tokens" if fallback == "tube" else f"`{fallback}`"
        stand_ins.append(f"`predict.kind: {recipe.predict.kind}` falls back to {chance}")
    stand_ins += [f"`targets: {name}` is left out of the loss" for name in guessing_motion(system)]
    return f"{unknown} of {videos} videos have no motion: for them {' and '.join(stand_ins)}"


def refuse_nothing_to_predict(system: System, recipe: Recipe, *, unknown: int, videos: int) -> None:
    """Refuse a target that predicts motion if no video has any.

    Raises:
        DataError: If so.
    """
    names = guessing_motion(system)
    if names and unknown == videos:
        raise DataError(
            f"none of the {videos} videos in `{recipe.data.store}` has motion, which "
            f"`targets: {names[0]}` predicts",
            hint="`tats prepare --motion auto` computes motion vectors for files that have none",
        )


def guessing_motion(system: System) -> list[str]:
    """Name the targets that follow motion."""
    return [name for name, target in system.targets.items() if target.needs_motion]


def pretrain_folder(loaded: LoadedRecipe, out: Path | str | None = None) -> Path:
    """Return the run folder of a pretraining."""
    return Path(out or loaded.recipe.run.out or Path("runs") / loaded.name)


def start_from(system: System, init: Path | str) -> str:
    """Load the weights of another run, of all parts that fit, and say which were loaded.

    Raises:
        CheckpointError: If not even the encoder's fit.
    """
    checkpoint = find_weights(init)
    model = checkpoint.tensors("model")
    if not (checkpoint.kind == "pretrained" and fits(system.autoencoder, model, checkpoint)):
        copied = load_encoder(system.encoder, checkpoint)
        return (
            f"the encoder starts from `{checkpoint.path}` ({copied}), the head from random weights"
        )
    copied = copy_weights(system.autoencoder, model, checkpoint)
    taken = ["encoder", "head"]
    if checkpoint.has("masker"):
        weights = with_variance(under("weights/", checkpoint.tensors("masker")))
        if weights and fits(system.masker, weights, checkpoint):
            more = copy_weights(system.masker, weights, checkpoint).tensors
            copied = copied._replace(tensors=copied.tensors + more)
            taken.append("sampler")
    names = f"{', '.join(taken[:-1])} and {taken[-1]}"
    return f"{names} start from `{checkpoint.path}` ({copied})"
