"""Options that several commands share, and the `Reporter` they describe."""

from __future__ import annotations

import io
import os
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tatscli.console import Reporter

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings on stderr, no progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also details on stderr.")]

Source = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change, such as optim.epochs=200."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Store to read instead of `data.store`.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue the run exactly where it stopped.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run folder.")]
MaxSteps = Annotated[
    int | None,
    typer.Option("--max-steps", min=1, help="Stop after so many steps of the full schedule."),
]
Nproc = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Processes on this machine, each with a GPU; `auto` is one for each GPU there is.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the derived numbers and stop.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        help="Devices that --dry-run plans for: their batches and memory.",
        show_default="as many as processes",
    ),
]
GpuMemory = Annotated[
    float | None,
    typer.Option("--gpu-memory", min=0.1, help="GB of each of them: does the training fit?"),
]

Windows = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=1,
        help="So many windows of each video, evenly spread.",
        show_default="as many as cover it; 1 with uniform sampling",
    ),
]
Every = Annotated[
    float | None,
    typer.Option("--every", min=0.01, help="A new window every so many seconds instead."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N` or `mps`."
    ),
]


class Which(StrEnum):
    """Which checkpoint of a run is used."""

    LAST = "last"
    BEST = "best"


WhichCheckpoint = Annotated[
    Which, typer.Option("--checkpoint", help="`best` was chosen on `finetune.val_split`.")
]


def reporter(json: bool, quiet: bool, verbose: bool, *, joins: bool = False) -> Reporter:
    """Make the reporter that `--json`, `--quiet` and `--verbose` ask for.

    Args:
        json: Print one JSON object and no tables.
        quiet: Only warnings.
        verbose: Also details.
        joins: The command joins the processes that were started together with this one: only the
            first of them speaks, and the others keep their warnings.

    Raises:
        UsageError: If the command joins, and what the environment says of the others makes no
            sense.
    """
    from tatscli.console import Reporter
    from tatscli.engine.schedulers import find_place

    place = find_place(os.environ)[0] if joins else None
    if place is not None and place.rank > 0:
        return Reporter(quiet=True, stdout=io.StringIO())
    return Reporter(json_output=json, quiet=quiet, verbose=verbose)


def planned(
    dry_run: bool, gpus: int | None, memory: float | None, nproc: str | None, device: str
) -> dict[str, Any]:
    """Return what a dry run plans for, by the arguments of `plan_pretraining`.

    Args:
        dry_run: Whether it is one.
        gpus: `--gpus`.
        memory: `--gpu-memory`.
        nproc: `--nproc`, which counts where `--gpus` does not.
        device: `run.device`.

    Raises:
        UsageError: If it is none, and the options were given all the same.
    """
    from tatscli.engine.launch import processes
    from tatscli.errors import UsageError

    if not dry_run and (gpus is not None or memory is not None):
        raise UsageError(
            "`--gpus` and `--gpu-memory` say what `--dry-run` plans for",
            hint="`--nproc` starts processes on this machine",
        )
    if dry_run and gpus is None and nproc is not None:
        gpus = processes(nproc, device=device, environ={})
    return {"gpus": gpus, "gpu_memory": memory}


def view_size(text: str) -> int | tuple[int, int]:
    """Read one side, or height and width, in pixels.

    Raises:
        UsageError: If it is neither.
    """
    from tatscli.errors import UsageError

    found = re.fullmatch("([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if found is None:
        raise UsageError(
            f"`--size {text}` must be a number of pixels, such as `160`, or height x width, such as"
            " `96x160`"
        )
    height, width = found.groups()
    return int(height) if width is None else (int(height), int(width))
