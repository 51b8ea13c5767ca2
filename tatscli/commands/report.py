"""`tats report`: one page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import (
    Json,
    Overrides,
    Quiet,
    StoreOption,
    Verbose,
    Which,
    WhichCheckpoint,
    reporter,
)

EPILOG = """Examples:

  tats report runs/ucf101

  tats report runs/ucf101-finetune --out report.html

  tats report runs/ucf101-finetune --checkpoint best --clips 12

  tats report runs/ucf101 --store /fast/prepared/ucf101 --json
"""


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The page.", show_default="RUN/report.html, always replaced"
        ),
    ] = None,
    result: Annotated[
        Path | None,
        typer.Option(
            "--result",
            help="The evaluation to show in detail.",
            show_default="the newest in RUN/results",
        ),
    ] = None,
    clips: Annotated[
        int, typer.Option("--clips", min=0, help="Videos in each gallery; 0 reads no store.")
    ] = 6,
    checkpoint: WhichCheckpoint = Which.LAST,
    store: StoreOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file named by --out.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page about a run: curves, masks, mistakes, neighbours, recipe."""
    from tatscli.tasks.recipes import shorthand
    from tatscli.tasks.report import report as write_report

    say = reporter(json, quiet, verbose)
    written = write_report(
        run,
        reporter=say,
        out=out,
        result=result,
        overrides=shorthand(overrides, {"data.store": store}),
        clips=clips,
        prefer=checkpoint.value,
        overwrite=overwrite,
    )
    say.info(f"wrote {written['report']} ({written['bytes'] / 1e6:.1f} MB)")
    say.result(written)
