"""Pretraining: mask, encode what is seen, predict what is hidden or some of it, and let the masker
learn from the error.

Shapes: B batch, C channels, T frames, N tokens, P raw pixels of a token, K visible, M predicted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tatscli.console import Reporter
from tatscli.data.batch import Batch
from tatscli.data.dataset import PretrainClips
from tatscli.data.normalize import standardize, to_unit
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.loop import Training, train
from tatscli.engine.optim import build_optimizer
from tatscli.engine.session import session
from tatscli.masking.insight import mask_insight
from tatscli.masking.plan import gather_tokens
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.tasks.build import (
    System,
    build_system,
    copy_weights,
    load_encoder,
    masker_tensors,
    restore_masker,
)
from tatscli.tasks.training import begin_run, checkpoint_meta, data_stream, schedule_rows


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
    recipe = loaded.recipe
    folder = pretrain_folder(loaded, out)
    store = Store.open(recipe.data.store)
    rows = store.part(recipe.data.split)
    with session(recipe.run, reporter) as here:
        schedule = derive_schedule(
            recipe.optim, videos=len(rows), repeats=recipe.data.repeats, world=here.world.size
        )
        # The sampler updates once per micro-batch: its rate counts the videos in it on all devices.
        system = build_system(recipe, lr_scale=schedule.batch_per_device * schedule.world / 256)
        if init is not None and not resume:
            here.reporter.info(start_from(system, init))
        clips = PretrainClips(
            store,
            rows,
            recipe.data,
            patch=recipe.model.patch,
            seed=recipe.run.seed,
            follows_motion=system.follows_motion,
        )
        if system.follows_motion:
            unknown = len(clips.motion_source.unknown(rows))  # on all ranks: it may refuse
            if unknown and here.world.main:
                notice = motion_notice(system, recipe, unknown=unknown, videos=len(rows))
                here.reporter.warn(notice)
        # Only now: what the clips cannot give must not cost a run that `overwrite` replaces.
        checkpoint = begin_run(
            here, folder, loaded, schedule, store, resume=resume, overwrite=overwrite
        )
        for name, value in schedule_rows(schedule):
            here.reporter.detail(f"{name}: {value}")
        system.to(here.device)
        forward, synced = here.wrap(system.autoencoder, recipe.run)
        encoder, masker, selection = system.encoder, system.masker, system.selection

        def step(batch: Batch, generator: Generator, done: int) -> tuple[Tensor, dict[str, float]]:
            masker.schedule(done, schedule.total_steps)
            unit_BCTHW = to_unit(batch.video_BCTHW)
            cubes_BNP = encoder.cubes(standardize(unit_BCTHW, recipe.data.mean, recipe.data.std))
            with torch.set_grad_enabled(masker.reaches_encoder):
                state = encoder.embed(cubes_BNP) if system.needs_embeddings else cubes_BNP
            plan = masker.plan(state, motion=batch.motion, generator=generator)
            plan = selection.select(plan, state, motion=batch.motion, generator=generator)
            predictions = forward(cubes_BNP, plan.visible_BK, plan.predict_BM)
            error_BM = torch.zeros_like(plan.predict_BM, dtype=torch.float32)
            for prediction_BMC, target in zip(predictions, system.targets, strict=True):
                target_BMC = gather_tokens(target.of(unit_BCTHW), plan.predict_BM)
                error_BM = error_BM + target.weight * target.error(prediction_BMC, target_BMC)
            metrics = masker.learn(plan, error_BM.detach())
            metrics |= mask_insight(plan, grid=recipe.grid, motion=batch.motion)
            for notice in masker.notices():
                here.reporter.warn(notice, once=True)
            loss = error_BM.mean()
            if masker.token_gradient_BND is not None:
                # Adds the gradient of the sampler's loss to the patch embedding, and 0 to the loss.
                pull = (state * masker.token_gradient_BND).sum()
                loss = loss + pull - pull.detach()
            return loss, metrics

        training = Training(
            model=system.autoencoder,
            step=step,
            optimizer=build_optimizer(system.autoencoder, recipe.optim),
            schedule=schedule,
            batches=data_stream(clips, schedule, recipe, store, here),
            run=recipe.run,
            clip_grad=recipe.optim.clip_grad,
            folder=folder,
            meta=checkpoint_meta("pretrained", loaded, store),
            world=here.world,
            device=here.device,
            dtype=here.dtype,
            reporter=here.reporter,
            synced=synced,
            extra_tensors=lambda: masker_tensors(masker),
        )
        if checkpoint is not None:
            training.restore(checkpoint)
            restore_masker(masker, checkpoint)
            here.reporter.info(f"resuming after step {training.done} of {schedule.total_steps}")
        result = train(training)
    last = find_checkpoint(folder).path if here.world.main else folder
    return {"run": str(folder), "checkpoint": str(last), **result}


def motion_notice(system: System, recipe: Recipe, *, unknown: int, videos: int) -> str:
    """Say what stands in for the motion of videos that have none."""
    fallback = recipe.data.motion.fallback
    stand_ins = []
    if system.masker.needs_motion:
        stand_ins.append(f"`mask.kind: {recipe.mask.kind}` falls back to `{fallback}`")
    if system.selection.needs_motion:
        chance = "any tokens" if fallback == "tube" else f"`{fallback}`"
        stand_ins.append(f"`predict.kind: {recipe.predict.kind}` falls back to {chance}")
    return f"{unknown} of {videos} videos have no motion: there {' and '.join(stand_ins)}"


def pretrain_folder(loaded: LoadedRecipe, out: Path | str | None = None) -> Path:
    """Return the run folder of a pretraining."""
    return Path(out or loaded.recipe.run.out or Path("runs") / loaded.name)


def start_from(system: System, init: Path | str) -> str:
    """Take the weights of another run (not its optimiser, step or sampler) and say what was taken.

    Raises:
        CheckpointError: If they do not fit.
    """
    checkpoint = find_checkpoint(Path(init))
    if checkpoint.kind == "pretrained" and fits(system, checkpoint.tensors("model")):
        copy_weights(system.autoencoder, checkpoint.tensors("model"), checkpoint)
        return f"encoder and head start from `{checkpoint.path}`"
    count = load_encoder(system.encoder, checkpoint)
    return f"the encoder starts from `{checkpoint.path}` ({count} tensors), the head from scratch"


def fits(system: System, tensors: dict[str, Tensor]) -> bool:
    """Whether tensors have the names and shapes of the whole autoencoder."""
    wanted = system.autoencoder.state_dict()
    return {name: value.shape for name, value in wanted.items()} == {
        name: value.shape for name, value in tensors.items()
    }
