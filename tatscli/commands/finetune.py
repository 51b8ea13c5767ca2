"""`tats finetune`: action recognition on top of a pretrained encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Overrides, Quiet, Verbose, reporter

EPILOG = """Examples:

  tats finetune runs/ucf101

  tats finetune ucf101 --init runs/ssv2 finetune.optim.epochs=50

  tats finetune ucf101 --scratch --out runs/ucf101-scratch

  tats finetune ucf101 --resume
"""


def finetune(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RECIPE", help="A pretraining run, a YAML file, or a shipped recipe."
        ),
    ],
    overrides: Overrides = None,
    store: Annotated[
        str | None,
        typer.Option("--store", help="Store to read instead of the recipe's `data.store`."),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="Run or checkpoint whose encoder to start from.",
            show_default="the run, or runs/<recipe>",
        ),
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Start from random weights instead.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder.", show_default="<run>-finetune")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly where it stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run folder.")] = False,
    max_steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, help="Stop after so many steps of the full schedule."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the derived numbers and stop.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fine-tune a pretrained encoder on the labelled videos of a store."""
    from tatscli.tasks.recipes import open_recipe, shorthand

    say = reporter(json, quiet, verbose)
    given = shorthand(overrides, {"data.store": store, "run.max_steps": max_steps})
    loaded, folder = open_recipe(source, given)
    for note in loaded.notes:
        say.info(note)
    if dry_run:
        from tatscli.tasks.dry_run import plan_finetuning, show_plan

        show_plan(plan_finetuning(loaded), say)
        return
    from tatscli.tasks.finetune import choose_start, finetune_folder
    from tatscli.tasks.finetune import finetune as run_finetuning

    start = choose_start(loaded, folder, init=init, scratch=scratch)
    result = run_finetuning(
        loaded,
        reporter=say,
        init=start,
        out=out or finetune_folder(loaded, folder, scratch=scratch),
        resume=resume,
        overwrite=overwrite,
    )
    say.info(f"wrote {result['run']}")
    say.result(result)
