"""`tats finetune`: action recognition on top of a pretrained encoder."""

from __future__ import annotations

from functools import partial
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
    StoreOption,
    Training,
    Verbose,
    planned,
    reporter,
    resuming,
)

CLASS = Training

EPILOG = """Examples:

  tats finetune runs/ucf101

  tats finetune ucf101 --init runs/ssv2 finetune.optim.epochs=50

  tats finetune ucf101 --scratch --out runs/ucf101-scratch

  tats finetune ucf101 --resume

  tats finetune runs/ssv2 --nproc 8

  tats finetune ucf101 --resume auto
"""


def finetune(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE", help="A pretraining run, a YAML file, or a shipped recipe."
        ),
    ],
    overrides: Overrides = None,
    store: StoreOption = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Run, checkpoint or weights of others whose encoder to start from.",
            show_default="the run, or runs/<recipe>",
        ),
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start from random weights instead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder.", show_default="<run>-finetune")
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
    """Fine-tune a pretrained encoder on the labelled videos of a store."""
    from tatscli.tasks.recipes import open_recipe, resumes_itself, shorthand

    say = reporter(json, quiet, verbose, joins=not dry_run)
    given = shorthand(overrides, {"data.store": store, "run.max_steps": max_steps})
    resumes = (resume or resume_auto) and resumes_itself(source, "finetuned")
    loaded, folder = open_recipe(source, given, resumes=resumes)
    for note in loaded.notes:
        say.info(note)
    plans = planned(dry_run, gpus, gpu_memory, nproc, loaded.recipe.run.device)
    if dry_run:
        from tatscli.tasks.dry_run import plan_finetuning, show_plan
        from tatscli.tasks.finetune import finetune_folder

        target = out or finetune_folder(loaded, folder, scratch=scratch)
        show_plan(plan_finetuning(loaded, target, **plans), say)
        return
    if nproc is not None:
        from tatscli.engine.launch import launch

        launch(context.obj, nproc, device=loaded.recipe.run.device)
    from tatscli.tasks.finetune import choose_start
    from tatscli.tasks.finetune import finetune as run_finetuning

    choose = partial(choose_start, loaded, folder, init=init, scratch=scratch)
    target = out or choose(resume=resume or resume_auto)[1]
    resume, overwrite = resuming(target, resume=resume, auto=resume_auto, overwrite=overwrite)
    start, _ = choose(resume=resume)
    result = run_finetuning(
        loaded,
        reporter=say,
        init=start,
        out=target,
        resume=resume,
        overwrite=overwrite,
    )
    say.info(f"wrote {result['run']}")
    say.result(result)
