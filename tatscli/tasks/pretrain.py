"""Pretraining: mask, encode what is seen, predict what is hidden or some of it, and let the masker
learn from the error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Lesson, Part, under
from tatscli.engine.schedule import lr_at
from tatscli.engine.session import Session
from tatscli.errors import DataError
from tatscli.masking.insight import mask_insight
from tatscli.nn.load import copy_weights, load_encoder
from tatscli.recipe.derive import Schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.system.cost import count_parameters
from tatscli.system.load import refuse_other_frozen
from tatscli.system.system import System, build_system
from tatscli.targets import AllTargets
from tatscli.tasks.training import Stage, run_training


def pretrain(
    loaded: LoadedRecipe,
    *,
    reporter: Reporter,
    out: Path | str | None = None,
    init: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train the system a recipe describes.

    Args:
        loaded: The merged recipe.
        reporter: Speaks to the user.
        out: Run folder; by default `run.out`, else `runs/<recipe>`.
        init: Run or checkpoint whose weights (not state) to start from.
        resume: Continue the run in `out` exactly where it stopped.
        overwrite: Replace the run in `out`.

    Returns:
        `run`, `checkpoint`, `steps`, `seconds`, `loss` and the masker's last metrics.

    Raises:
        TatsError: If store, recipe, run folder or weights cannot be used.
    """
    folder = pretrain_folder(loaded, out)
    stage = Pretraining(loaded, Store.open(loaded.recipe.data.store), init)
    return run_training(stage, folder, reporter=reporter, resume=resume, overwrite=overwrite)


class Pretraining(Stage):
    """A masked autoencoder, and a sampler where the mask learns.

    Args:
        loaded: The merged recipe.
        store: The data.
        init: Run or checkpoint whose weights to start from.
    """

    kind = "pretrained"

    def __init__(self, loaded: LoadedRecipe, store: Store, init: Path | str | None) -> None:
        data = loaded.recipe.data
        rows = store.part(data.split)
        super().__init__(loaded, store, rows, loaded.recipe.optim, repeats=data.repeats)
        self.init = init

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
        )
        if self.system.follows_motion:
            unknown = len(clips.motion_source.unknown(self.rows))  # on all ranks: it may refuse
            videos = len(self.rows)
            refuse_nothing_to_predict(self.system, recipe, unknown=unknown, videos=videos)
            if unknown and here.world.main:
                notice = motion_notice(self.system, recipe, unknown=unknown, videos=videos)
                here.reporter.warn(notice)

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
        if resumed is not None:
            refuse_other_frozen(self.system, resumed)
        frozen = [one.facts for one in self.system.frozen()]
        return {"frozen": frozen} if frozen else {}

    def step(self, batch: Batch, generator: Generator) -> Lesson:
        """Take `step`, with the autoencoder as it is wrapped."""
        return step(self.system.called(self.network), batch, generator)

    def check(self, means: dict[str, float]) -> None:
        """Find out that a mask or selection has broken the rules of `MaskPlan`.

        Raises:
            RuntimeError: If so; it is a bug.
        """
        if means.pop("plan_faults", 0.0):
            raise RuntimeError(
                f"`mask.kind: {self.recipe.mask.kind}` with `predict.kind: "
                f"{self.recipe.predict.kind}` made plans whose tokens are not ascending, disjoint "
                "and within the clip"
            )

    def work(self) -> float:
        """Count six operations for each weight and token."""
        system, seen = self.system, self.system.masker.visible
        head_tokens = seen + system.selection.budget
        encoder = seen * count_parameters(system.encoder)
        head = head_tokens * count_parameters(system.autoencoder.head)
        sampler = system.encoder.tokens * count_parameters(system.masker)
        return 6.0 * (encoder + head + sampler)


def step(system: System, batch: Batch, generator: Generator) -> Lesson:
    """Mask, predict, compare; teach the masker, whose loss joins the autoencoder's."""
    clip = system.clip(
        batch.video_BCTHW, motion=batch.motion, label_B=batch.label_B, row_B=batch.row_B
    )
    found = system.errors(clip, generator)
    lesson = system.masker.learn(found.plan, found.error_BM.detach())
    metrics = {
        "loss": found.loss,  # without the masker's own, which is no error of the autoencoder
        **found.metrics,
        **lesson.metrics,
        **mask_insight(found.plan, grid=system.form.grid, motion=batch.motion),
        "plan_faults": found.plan.faulty_B(system.form.tokens).float().mean(),
    }
    if lesson.loss is None:
        return Lesson(metrics, lesson.notices, found.loss)
    metrics[f"loss/{system.masker.config.kind}"] = lesson.loss
    return Lesson(metrics, lesson.notices, found.loss + lesson.loss)


def motion_notice(system: System, recipe: Recipe, *, unknown: int, videos: int) -> str:
    """Say what happens with videos that have no motion."""
    fallback = recipe.data.motion.fallback
    stand_ins = []
    if system.masker.needs_motion:
        stand_ins.append(f"`mask.kind: {recipe.mask.kind}` falls back to `{fallback}`")
    if system.selection.needs_motion:
        chance = "any tokens" if fallback == "tube" else f"`{fallback}`"
        stand_ins.append(f"`predict.kind: {recipe.predict.kind}` falls back to {chance}")
    stand_ins += [f"`targets: {name}` counts no error" for name in guessing_motion(system)]
    return f"{unknown} of {videos} videos have no motion: there {' and '.join(stand_ins)}"


def refuse_nothing_to_predict(system: System, recipe: Recipe, *, unknown: int, videos: int) -> None:
    """Find out that a target would predict motion where no video has any.

    Raises:
        DataError: If so.
    """
    names = guessing_motion(system)
    if names and unknown == videos:
        raise DataError(
            f"none of the {videos} videos in `{recipe.data.store}` has motion, which "
            f"`targets: {names[0]}` predicts",
            hint="`tats prepare --motion auto` makes vectors for files that have none",
        )


def guessing_motion(system: System) -> list[str]:
    """Name the targets that follow motion."""
    return [name for name, target in system.targets.items() if target.needs_motion]


def pretrain_folder(loaded: LoadedRecipe, out: Path | str | None = None) -> Path:
    """Return the run folder of a pretraining."""
    return Path(out or loaded.recipe.run.out or Path("runs") / loaded.name)


def start_from(system: System, init: Path | str) -> str:
    """Take the weights of another run, of all parts that fit, and say which were taken.

    Raises:
        CheckpointError: If not even the encoder's fit.
    """
    checkpoint = find_checkpoint(Path(init))
    if not (
        checkpoint.kind == "pretrained" and fits(system.autoencoder, checkpoint.tensors("model"))
    ):
        copied = load_encoder(system.encoder, checkpoint)
        return (
            f"the encoder starts from `{checkpoint.path}` ({copied} tensors), the head from scratch"
        )
    copy_weights(system.autoencoder, checkpoint.tensors("model"), checkpoint)
    taken = ["encoder", "head"]
    if checkpoint.has("masker"):
        weights = under("weights/", checkpoint.tensors("masker"))
        if weights and fits(system.masker, weights):
            copy_weights(system.masker, weights, checkpoint)
            taken.append("sampler")
    return f"{', '.join(taken[:-1])} and {taken[-1]} start from `{checkpoint.path}`"


def fits(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether tensors have the names and shapes of a whole module."""
    return {name: value.shape for name, value in module.state_dict().items()} == {
        name: value.shape for name, value in tensors.items()
    }
