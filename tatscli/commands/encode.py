"""`tats store encode`: a tokenizer's codes for all frames of a store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tatscli.commands.options import Json, Overrides, Quiet, Verbose, reporter, view_size

EPILOG = """\b
Examples:
  tats store encode prepared/videos --tokenizer runs/tokenizer-vq --size 224
  tats store encode prepared/videos --tokenizer vqvae --kind diffusers --size 112x224
  tats store encode prepared/videos --recipe my.yaml data.sampling.clips=4
"""


class TokenizerKind(StrEnum):
    """Where a tokenizer comes from."""

    RUN = "run"
    DIFFUSERS = "diffusers"
    TAMING = "taming"


def encode(
    path: Annotated[
        Path, typer.Argument(metavar="STORE", help="A folder that `tats prepare` wrote.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Write the codes that this recipe reads: by its `data` and its first `cached`"
            " tokenizer.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH",
            help="A trained tokenizer.  [default: the recipe's]",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="N|HxW",
            help="`data.size` in pixels.  [default: the recipe's, else 224]",
        ),
    ] = None,
    kind: Annotated[
        TokenizerKind,
        typer.Option(
            "--kind",
            help="`run`: of `tats pretrain`; `diffusers`: a folder; `taming`: a VQGAN's `.ckpt`.",
        ),
    ] = TokenizerKind.RUN,
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            min=0.01,
            max=16,
            help="The target's `scale`.  [default: the recipe's, else 1]",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Store a tokenizer's codes with the frames, for targets with `cached: true`.

    Codes are those of the centre crop (`data.crop: centre`), for every frame; or, if the tokenizer
    encodes several frames at once, for the recipe's fixed clips (`data.sampling.clips`). If
    stopped, rerun the same command to continue.
    """
    from pydantic import TypeAdapter

    from tatscli.errors import UsageError
    from tatscli.recipe.load import load_recipe
    from tatscli.recipe.schema import TrainedTokenizer
    from tatscli.tasks.encode import encode_recipe, encode_store

    say = reporter(json, quiet, verbose)
    source: TrainedTokenizer | None = (
        TypeAdapter(TrainedTokenizer).validate_python({"kind": kind.value, "path": tokenizer})
        if tokenizer is not None
        else None
    )
    sides = None if size is None else view_size(size)
    view = (sides, sides) if isinstance(sides, int) else sides
    if recipe is not None:
        loaded = load_recipe(recipe, overrides or ())
        for note in loaded.notes:
            say.info(note)
        result = encode_recipe(path, loaded, reporter=say, source=source, size=view, scale=scale)
    elif overrides:
        raise UsageError(f"`{overrides[0]}` overrides a recipe key, but there is no `--recipe`")
    elif source is None:
        raise UsageError("give `--recipe RECIPE` or `--tokenizer PATH` to encode with")
    else:
        result = encode_store(
            path, source, size=view or (224, 224), scale=scale or 1.0, reporter=say
        )
    say.info(
        f"wrote {result['codes']}: {result['frames']} frames of {result['videos']} videos, "
        f"{result['bytes'] / 1e6:.1f} MB"
    )
    say.result(result)
