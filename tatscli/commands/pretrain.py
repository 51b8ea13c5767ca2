"""`tats pretrain`: train a masked autoencoder, and its sampler where the mask is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import (
    DryRun,
    GpuMemory,
    Gpus,
    Json,
    MaxSteps,
    Nproc,
    Overrides,
    Overwrite,
    Quiet,
    Resume,
    ResumeAuto,
    Source,
    StoreOption,
    Training,
    Verbose,
    planned,
    reporter,
    resuming,
)

CLASS = Training

EPILOG = """Examples:

  tats pretrain recipes/ssv2.yaml

  tats pretrain ucf101 --store prepared/ucf101 optim.epochs=400 mask.ratio=0.95

  tats pretrain small --dry-run --json

  tats pretrain videomae2/giant --dry-run --gpus 8 --gpu-memory 80

  tats pretrain runs/ucf101 --resume

  tats pretrain k400 --nproc 8

  tats pretrain ucf101 --resume auto

  torchrun --nproc-per-node 8 -m tatscli pretrain k400
"""


def pretrain(
    context: typer.Context,
    source: Source,
    overrides: Overrides = None,
    store: StoreOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder.", show_default="runs/<recipe>")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Start at step 0 from these weights: a run, a checkpoint, or weights of others.",
        ),
    ] = None,
    resume: Resume = False,
    resume_auto: ResumeAuto = False,
    overwrite: Overwrite = False,
    max_steps: MaxSteps = None,
    nproc: Nproc = None,
    dry_run: DryRun = False,
    gpus: Gpus = None,
    gpu_memory: GpuMemory = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Pretrain on the videos of a store: RECIPE says what is hidden, guessed and compared."""
    from tatscli.tasks.recipes import open_recipe, shorthand

    say = reporter(json, quiet, verbose, joins=not dry_run)
    given = shorthand(overrides, {"data.store": store, "run.max_steps": max_steps})
    loaded, folder = open_recipe(source, given, resumes=resume or (resume_auto and out is None))
    for note in loaded.notes:
        say.info(note)
    plans = planned(dry_run, gpus, gpu_memory, nproc, loaded.recipe.run.device)
    if dry_run:
        from tatscli.tasks.dry_run import plan_pretraining, show_plan
        from tatscli.tasks.pretrain import pretrain_folder

        show_plan(plan_pretraining(loaded, out or folder or pretrain_folder(loaded), **plans), say)
        return
    if nproc is not None:
        from tatscli.engine.launch import launch

        launch(context.obj, nproc, device=loaded.recipe.run.device)
    from tatscli.tasks.pretrain import pretrain as run_pretraining
    from tatscli.tasks.pretrain import pretrain_folder

    target = pretrain_folder(loaded, out or folder)
    resume, overwrite = resuming(target, resume=resume, auto=resume_auto, overwrite=overwrite)
    result = run_pretraining(
        loaded,
        reporter=say,
        out=target,
        init=init,
        resume=resume,
        overwrite=overwrite,
    )
    say.info(f"wrote {result['run']}")
    say.result(result)
