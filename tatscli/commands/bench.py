"""`tats bench`: how fast a recipe trains on this machine, and its bottleneck."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tatscli.commands.options import (
    Json,
    Overrides,
    Quiet,
    Source,
    StoreOption,
    Verbose,
    reporter,
)

EPILOG = """Examples:

  tats bench ssv2

  tats bench ucf101 --store prepared/ucf101 --seconds 60

  tats bench small --memory 16 run.precision=bf16 --json

  tats bench k400 --stage finetune --batch 8
"""


class BenchStage(StrEnum):
    """What a recipe is used for."""

    PRETRAIN = "pretrain"
    FINETUNE = "finetune"


def bench(
    source: Source,
    overrides: Overrides = None,
    store: StoreOption = None,
    stage: Annotated[
        BenchStage,
        typer.Option("--stage", help="Training to measure; a tokenizer recipe has only its own."),
    ] = BenchStage.PRETRAIN,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            help="Batch to measure, without searching for the largest that fits.",
            show_default="the recipe's",
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.1,
            metavar="GB",
            help="On a CPU: memory limit of the training process.",
            show_default="what is free",
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0.1, help="How long to measure loader and step, each."),
    ] = 20.0,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", min=0, help="Loader processes.", show_default="the recipe's `data.workers`"
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the training of RECIPE on this machine: largest batch, step, loader, bottleneck."""
    from tatscli.tasks.bench import bench as run_bench
    from tatscli.tasks.bench_table import show_bench
    from tatscli.tasks.recipes import open_recipe, shorthand

    say = reporter(json, quiet, verbose)
    loaded, _ = open_recipe(source, shorthand(overrides, {"data.store": store}))
    for note in loaded.notes:
        say.detail(note)
    found = run_bench(
        loaded,
        reporter=say,
        stage=stage.value,
        batch=batch,
        memory_gb=memory,
        seconds=seconds,
        workers=workers,
    )
    show_bench(found, say)
