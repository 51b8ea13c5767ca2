"""`tats replay`: repeat the bad step that stopped a training."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Quiet, StoreOption, Verbose, reporter

EPILOG = """Examples:

  tats replay runs/ucf101

  tats replay runs/ucf101 --precision fp32

  tats replay runs/ucf101-finetune --device cpu --json
"""


class Precision(StrEnum):
    """The precision of the computation."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def replay(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run that stopped because of bad steps."),
    ],
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Precision.", show_default="as in training"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            help="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`.",
            show_default="run.device",
        ),
    ] = None,
    store: StoreOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Videos in the table.")] = 10,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Repeat the bad step of a training: find the module and videos that are not finite.

    The exit code is 1 if the step is still bad, 0 if everything is finite now.
    """
    from tatscli.errors import Exit
    from tatscli.tasks.replay import replay as run_replay
    from tatscli.tasks.replay_findings import show

    say = reporter(json, quiet, verbose)
    result = run_replay(
        run,
        reporter=say,
        precision=None if precision is None else precision.value,
        device=device,
        store=store,
    )
    show(result, say, limit=limit)
    say.result(result)
    return Exit.OK if result["finite"] else Exit.FAILED
