"""`tats embed`: features of videos, on disk."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import (
    Device,
    Every,
    Json,
    Quiet,
    Verbose,
    Which,
    WhichCheckpoint,
    Windows,
    reporter,
)

EPILOG = """Examples:

  tats embed videos --run runs/ssv2 --out features.safetensors

  tats embed prepared/ucf101 --run runs/ucf101 --split val --windows 1

  tats embed clip.mp4 --run runs/ucf101-finetune --per window --layer 4

  tats embed clip.mp4 --run runs/ucf101 --per token --precision float16 --out tokens.safetensors
"""


class Per(StrEnum):
    """What a row of the file is."""

    CLIP = "clip"
    WINDOW = "window"
    TOKEN = "token"


class Precision(StrEnum):
    """Numbers on disk."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


def embed(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SRC...", help="A store, or video files and folders of them."),
    ],
    run: Annotated[
        Path, typer.Option("--run", help="A pretrained or fine-tuned run, or a checkpoint.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write; the same command continues one that was interrupted.",
            show_default="<name of SRC>.features.safetensors",
        ),
    ] = None,
    per: Annotated[
        Per,
        typer.Option(
            "--per",
            help="What a row is: the mean of a `clip`, of each `window`, or each window with all "
            "its tokens (`token`).",
        ),
    ] = Per.CLIP,
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            min=0,
            help="Blocks to run; 0 is the patch embeddings.",
            show_default="all, and the last norm",
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of the numbers in the file.")
    ] = Precision.FLOAT32,
    split: Annotated[
        str | None, typer.Option("--split", help="Part of a store.", show_default="all of it")
    ] = None,
    windows: Windows = None,
    every: Every = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out videos that cannot be read.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file, or what another run has begun.")
    ] = False,
    device: Device = "auto",
    checkpoint: WhichCheckpoint = Which.LAST,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write features of videos to a file, by a run's frozen encoder; resumable."""
    from tatscli.tasks.embed import embed as run_embedding

    say = reporter(json, quiet, verbose)
    result = run_embedding(
        sources,
        run,
        reporter=say,
        out=out,
        per=per.value,
        layer=layer,
        precision=precision.value,
        split=split,
        windows=windows,
        every=every,
        skip_bad=skip_bad,
        overwrite=overwrite,
        device=device,
        prefer=checkpoint.value,
    )
    shape = " x ".join(str(side) for side in result["shape"])
    say.table(
        "features",
        ["videos", "rows", "shape", "numbers", "left out"],
        [(result["videos"], result["rows"], shape, precision.value, len(result["skipped"]))],
    )
    say.info(f"wrote {result['out']}")
    say.result(result)
