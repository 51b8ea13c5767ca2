"""`tats demo`: all stages on a rendered set of movements, in about three minutes on two cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Overrides, Quiet, Verbose, reporter

EPILOG = """Examples:

  tats demo

  tats demo --out /tmp/demo --json

  tats demo --overwrite mask.kind=tube run.seed=1
"""


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier demo there first.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Render, prepare, pretrain, finetune, evaluate, visualize: with and without pretraining."""
    from tatscli.demo.journey import demo as travel
    from tatscli.engine.schedulers import find_place
    from tatscli.errors import UsageError

    place = find_place(os.environ)[0]
    if place is not None and place.size > 1:
        raise UsageError(f"`tats demo` runs in one process, and {place.source} has started several")
    say = reporter(json, quiet, verbose)
    result = travel(out, reporter=say, overrides=overrides or (), overwrite=overwrite)
    say.table(
        f"Top-1 on {result['videos']['val']} validation videos, {len(result['classes'])} movements",
        ["model", "top-1"],
        [
            ("chance", f"{result['chance']:.3f}"),
            ("trained from scratch", f"{result['from_scratch']:.3f}"),
            ("TATS-pretrained, same fine-tuning", f"{result['pretrained']:.3f}"),
        ],
    )
    say.table(
        "Time",
        ["stage", "seconds"],
        [*result["seconds"].items(), ("all", result["total_seconds"])],
    )
    say.info(f"{result['masks']} shows the masks of one video; everything else is in {out}")
    say.result(result)
