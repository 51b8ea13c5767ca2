"""Options that several commands share, and the `Reporter` they describe."""

from __future__ import annotations

import io
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from tatscli.console import Reporter

Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only warnings on stderr, no progress bars.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More details on stderr.")]

Source = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Recipe keys to override, such as optim.epochs=200."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Store to use instead of `data.store`.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the run exactly where it stopped; `--resume auto` starts it if there is "
        "nothing to resume, for jobs that get requeued.",
    ),
]
ResumeAuto = Annotated[bool, typer.Option("--resume-auto", hidden=True)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the run folder; the old run is kept until the new one has a checkpoint.",
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max-steps", min=1, help="Stop after this many steps of the full schedule, as a trial."
    ),
]
Nproc = Annotated[
    str | None,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Number of processes to start on this machine, one GPU each; `auto`: one per GPU.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the derived numbers and exit.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        help="Number of devices for --dry-run to plan batches and memory for.",
        show_default="number of processes",
    ),
]
GpuMemory = Annotated[
    float | None,
    typer.Option(
        "--gpu-memory", min=0.1, help="Memory per device in GB, for --dry-run to check what fits."
    ),
]

Windows = Annotated[
    int | None,
    typer.Option(
        "--windows",
        min=1,
        help="Number of windows per video, evenly spaced.",
        show_default="as many as cover the video; 1 with uniform sampling",
    ),
]
Every = Annotated[
    float | None,
    typer.Option("--every", min=0.01, help="Start a window every this many seconds instead."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N` or `mps`."
    ),
]


class Training(TyperCommand):
    """A command whose `--resume` takes an optional value, `auto`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--resume auto` and `--resume=auto` as an option of its own."""
        words: list[str] = []
        for word in args:
            if word == "auto" and words[-1:] == ["--resume"] and "--" not in words:
                words[-1] = "--resume-auto"
            else:
                words.append("--resume-auto" if word == "--resume=auto" else word)
        return super().parse_args(ctx, words)


def resuming(folder: Path, *, resume: bool, auto: bool, overwrite: bool) -> tuple[bool, bool]:
    """Return whether to resume, and whether to overwrite, in a run folder.

    Raises:
        UsageError: If more than one of the three was given.
    """
    from tatscli.engine.run import resume_or_start
    from tatscli.errors import UsageError

    if auto and (resume or overwrite):
        other = "--resume" if resume else "--overwrite"
        raise UsageError(f"`--resume auto` and `{other}` cannot be combined")
    return resume_or_start(folder) if auto else (resume, overwrite)


class Which(StrEnum):
    """Which checkpoint of a run is used."""

    LAST = "last"
    BEST = "best"


WhichCheckpoint = Annotated[
    Which,
    typer.Option(
        "--checkpoint", help="Which checkpoint; `best` was selected on `finetune.val_split`."
    ),
]


def reporter(json: bool, quiet: bool, verbose: bool, *, joins: bool = False) -> Reporter:
    """Make the reporter for `--json`, `--quiet` and `--verbose`.

    Args:
        json: Print one JSON object and no tables.
        quiet: Only warnings.
        verbose: Also details.
        joins: The command joins the other processes of a launcher: only the main process reports,
            the others print warnings.

    Raises:
        UsageError: If the command joins, and the launcher's environment variables are
            inconsistent.
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
    """Return the devices that a dry run plans for, as arguments of `plan_pretraining`.

    Args:
        dry_run: Whether it is one.
        gpus: `--gpus`.
        memory: `--gpu-memory`.
        nproc: `--nproc`, the default of `--gpus`.
        device: `run.device`.

    Raises:
        UsageError: If it is no dry run and the options were given.
    """
    from tatscli.engine.launch import processes
    from tatscli.errors import UsageError

    if not dry_run and (gpus is not None or memory is not None):
        raise UsageError(
            "`--gpus` and `--gpu-memory` only work with `--dry-run`",
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
