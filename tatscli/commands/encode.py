"""`tats store encode`: a tokenizer's codes of all frames of a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter, view_size

EPILOG = """\b
Examples:
  tats store encode prepared/videos --tokenizer runs/tokenizer-vq --size 224
  tats store encode prepared/videos --tokenizer vqvae --kind diffusers --size 112x224
"""


class TokenizerKind(StrEnum):
    """Who made a tokenizer."""

    RUN = "run"
    DIFFUSERS = "diffusers"
    TAMING = "taming"


def encode(
    path: Annotated[
        Path, typer.Argument(metavar="STORE", help="A folder that `tats prepare` wrote.")
    ],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="PATH", help="A trained tokenizer.")
    ],
    size: Annotated[
        str,
        typer.Option("--size", metavar="N|HxW", help="The recipe's `data.size`, in pixels."),
    ] = "224",
    kind: Annotated[
        TokenizerKind,
        typer.Option(
            "--kind",
            help="`run`: of `tats pretrain`; `diffusers`: a folder; `taming`: a VQGAN's `.ckpt`.",
        ),
    ] = TokenizerKind.RUN,
    scale: Annotated[
        float, typer.Option("--scale", min=0.01, max=16, help="The target's `scale`.")
    ] = 1.0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a tokenizer's codes of all frames beside them, for targets with `cached: true`.

    They are those of the middle crop (`data.crop: centre`). Stopped, it goes on where it was.
    """
    from pydantic import TypeAdapter

    from tatscli.recipe.schema import TrainedTokenizer
    from tatscli.tasks.encode import encode_store

    say = reporter(json, quiet, verbose)
    source: TrainedTokenizer = TypeAdapter(TrainedTokenizer).validate_python(
        {"kind": kind.value, "path": tokenizer}
    )
    sides = view_size(size)
    result = encode_store(
        path,
        source,
        size=(sides, sides) if isinstance(sides, int) else sides,
        scale=scale,
        reporter=say,
    )
    say.info(
        f"wrote {result['codes']}: {result['frames']} frames of {result['videos']} videos, "
        f"{result['bytes'] / 1e6:.1f} MB"
    )
    say.result(result)
