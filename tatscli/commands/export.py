"""`tats export`: a trained network as a file for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tatscli.commands.options import (
    Json,
    Overrides,
    Quiet,
    Verbose,
    Which,
    WhichCheckpoint,
    reporter,
)

EPILOG = """Examples:

  tats export runs/ucf101-finetune

  tats export runs/ucf101 data.frames=32 --out encoder-32.onnx --json
"""


class Format(StrEnum):
    """What is written."""

    ONNX = "onnx"


class Input(StrEnum):
    """What the exported network takes."""

    UINT8 = "uint8"
    FLOAT = "float"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run or checkpoint folder.")],
    overrides: Overrides = None,
    to: Annotated[Format, typer.Option("--to", help="Format of the file.")] = Format.ONNX,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file.",
            show_default="RUN/model.onnx, of an encoder encoder.onnx, always replaced",
        ),
    ] = None,
    features: Annotated[
        bool,
        typer.Option(
            "--features", help="The encoder of a fine-tuned run instead of its classifier."
        ),
    ] = False,
    input: Annotated[
        Input,
        typer.Option(
            "--input",
            help="`uint8`: RGB frames (batch, frames, height, width, 3), standardised by the file. "
            "`float`: standardised video (batch, 3, frames, height, width).",
        ),
    ] = Input.UINT8,
    opset: Annotated[
        int, typer.Option("--opset", min=18, help="Version of ONNX's operators.")
    ] = 18,
    checkpoint: WhichCheckpoint = Which.LAST,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file named by --out.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export the classifier of a fine-tuned run, or the encoder of any run, as an ONNX file."""
    from tatscli.tasks.export import export_onnx

    say = reporter(json, quiet, verbose)
    result = export_onnx(
        run,
        reporter=say,
        overrides=overrides or [],
        prefer=cast("Any", checkpoint.value),
        features=features,
        pixels=cast("Any", input.value),
        opset=opset,
        out=out,
        overwrite=overwrite,
    )
    facts = result["metadata"]
    difference = result["max_difference"]
    checked = "no" if difference is None else f"largest difference {difference:.1e} of the output"
    say.table(
        f"{result['kind']}, {result['bytes'] / 1e6:.1f} MB",
        ["what", "value"],
        [
            *((key, facts[key]) for key in ("input", "outputs", "frames", "size", "sampling")),
            ("opset", result["opset"]),
            ("compared with torch", checked),
        ],
    )
    for file in result["files"]:
        say.info(f"wrote {file}")
    say.result(result)
