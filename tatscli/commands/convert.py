"""`tats convert`: weights between our runs, `transformers` and the official layout."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Quiet, Verbose, Which, WhichCheckpoint, reporter

EPILOG = """Examples:

  tats convert runs/ucf101-finetune --to hf --out hub/ucf101 --license apache-2.0

  tats convert runs/ucf101 --to videomae --out ucf101.pth

  tats convert downloads/videomae-base --to tats --out runs/kinetics

  tats convert downloads/vit_s_k710.pth --classes label_710to400.json --to tats --out runs/k400

  tats convert downloads/mae_pretrain_vit_base.pth data.frames=32 --to tats --out runs/image-mae
"""


class To(StrEnum):
    """What is written."""

    TATS = "tats"
    HF = "hf"
    VIDEOMAE = "videomae"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A run or checkpoint, a folder of transformers, an official .pth of VideoMAE, "
            "VideoMAE V2 or AdaMAE, or an image ViT of MAE or timm.",
        ),
    ],
    to: Annotated[
        To,
        typer.Option(
            "--to",
            help="`tats`: a run folder. `hf`: a folder for transformers. `videomae`: a .pth in the "
            "official layout.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DST", help="Folder or file to write.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="What weights of others do not say, such as data.frames=32 or data.size=112.",
        ),
    ] = None,
    checkpoint: WhichCheckpoint = Which.LAST,
    classes: Annotated[
        Path | None,
        typer.Option(
            "--classes",
            metavar="MAP.json",
            help="Classes to keep: a list of rows of the classifier, or an object of them.",
        ),
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names", metavar="FILE", help="Names of the classes, one a line, or JSON."
        ),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(
            "--heads",
            min=1,
            help="Attention heads, which no tensor shows.",
            show_default="config.json, or as published for the width",
        ),
    ] = None,
    decoder_heads: Annotated[
        int | None,
        typer.Option(
            "--decoder-heads",
            min=1,
            help="Attention heads of the decoder.",
            show_default="config.json, or as published for the width",
        ),
    ] = None,
    tubelet: Annotated[
        int, typer.Option("--tubelet", min=1, help="Frames in a token, for an image ViT.")
    ] = 2,
    license: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence for the model card, such as `apache-2.0` or `cc-by-nc-4.0`.",
            show_default="unknown",
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Take or write what fits, and say what does not; else that is an error.",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert weights: every tensor is counted, and what does not fit is an error."""
    from tatscli.tasks.convert import convert as run_conversion
    from tatscli.tasks.convert import describe
    from tatscli.weights.layouts import Given

    say = reporter(json, quiet, verbose)
    result = run_conversion(
        source,
        to=to.value,
        out=out,
        reporter=say,
        overrides=overrides or [],
        prefer=checkpoint.value,
        given=Given(heads, decoder_heads, tubelet, partial),
        classes=classes,
        class_names=class_names,
        license=license,
        overwrite=overwrite,
    )
    say.table("converted", ["what", "value"], describe(result))
    say.info(f"wrote {result['out']}")
    say.result(result)
