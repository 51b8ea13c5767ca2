"""`tats visualize-masks`: look at what a mask hides of a clip, and at what a model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter, view_size

EPILOG = """Examples:

  tats visualize-masks clip.mp4

  tats visualize-masks clip.mp4 --mask random --ratio 0.75 --out clip.png

  tats visualize-masks clip.mp4 --mask mgm --size 128x224

  tats visualize-masks clip.mp4 --compare random,tube,mgm --out masks.png

  tats visualize-masks clip.mp4 --run runs/ssv2 --out clip.gif --windows 2

  tats visualize-masks clip.mp4 --run runs/ssv2 --every 1 --out growth.gif

  tats visualize-masks clip.mp4 --run runs/ssv2 --temperature 0.5 --ratio 0.95

  tats visualize-masks clip.mp4 --run runs/ssv2 --json --quiet > clip.json

  tats visualize-masks clip.mp4 --run runs/tokenizer-vq --out codes.png

  tats visualize-masks clip.mp4 --run runs/lvmae-tokenizer --out scores.png

  tats visualize-masks clip.mp4 --frames 128 --stride 1 --columns 8 --out long.png
"""


def visualize_masks(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file of any length.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Pretrained run, adds what the model does; or a tokenizer."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Take mask and clip shape from a recipe; no weights."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", help="Kind of mask.", show_default="the run's, or tube")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MASK,MASK,...",
            help="Several kinds of masks over the same frames, a row each.",
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio", help="Share of tokens hidden.", show_default="the run's, or the mask's own"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="An mp4, gif or png file.", show_default="<clip's stem>.masks.mp4"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="N|HxW",
            help="Side of the view in pixels, or height x width.",
            show_default="224",
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=1, help="Frames in a window.", show_default="16"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Source frames per step.", show_default="4"),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", min=1, help="Side of a token in pixels.", show_default="16"),
    ] = None,
    tubelet: Annotated[
        int | None,
        typer.Option("--tubelet", min=1, help="Frames in a token.", show_default="2"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the masks.")] = 0,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.1,
            max=120,
            help="Speed of the picture.",
            show_default="the clip's own; 2 with --every",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            "--windows",
            min=1,
            help="Windows to show.",
            show_default="all; the first in a png or with --every",
        ),
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            min=1,
            help="Slices that a png shows at most, evenly spaced.",
            show_default="16",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            min=1,
            help="Show how the policy grew: every so many of the checkpoints kept.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Of a learned mask: below 1 sharpens its policy.",
            show_default="1",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw masks over a clip: probabilities, visible tokens, reconstruction, error, motion."""
    from tatscli.errors import UsageError
    from tatscli.nn.load import is_tokenizer
    from tatscli.tasks.compare_masks import compare_masks
    from tatscli.tasks.visualize_masks import Wishes
    from tatscli.tasks.visualize_masks import visualize_masks as draw

    say = reporter(json, quiet, verbose)
    pixels = None if size is None else view_size(size)
    wishes = Wishes(mask, ratio, pixels, frames, stride, patch, tubelet, temperature)
    where: dict[str, Any] = {
        "reporter": say,
        "run": run,
        "recipe": recipe,
        "wishes": wishes,
        "out": out,
        "seed": seed,
        "fps": fps,
        "windows": windows,
        "columns": columns,
    }
    if run is not None and is_tokenizer(run):
        result = _draw_tokenizer(where, clip, compare=compare, every=every)
        names, count = f"{result['codebook_size']} codes", len(result["windows"])
    elif compare is None:
        result = draw(clip, every=every, **where)
        names, count = f"{result['mask']} mask at {result['ratio']:g}", len(result["windows"])
    else:
        for option, value in (("--mask", mask), ("--every", every)):
            if value is not None:
                raise UsageError(f"`--compare` and `{option}` exclude each other")
        result = compare_masks(clip, compare, **where)
        names = f"masks {', '.join(one['mask'] for one in result['compare'])}"
        count = len(result["compare"][0]["windows"])
    if "checkpoints" in result:
        steps = [str(one["step"]) for one in result["checkpoints"]]
        say.info(f"checkpoints of {run} shown: {', '.join(steps)}")
    slices, rows, columns = result["grid"]
    say.info(
        f"wrote {result['out']}: {count} {'window' if count == 1 else 'windows'} of "
        f"{slices} x {rows} x {columns} tokens, {names}"
    )
    say.result(result)


def _draw_tokenizer(
    where: dict[str, Any], clip: Path, *, compare: str | None, every: int | None
) -> dict[str, Any]:
    """Draw what a tokenizer makes of a clip.

    Raises:
        UsageError: If an option is given that speaks of masks.
    """
    from tatscli.errors import UsageError
    from tatscli.tasks.visualize_tokenizer import visualize_tokenizer

    run = where["run"]
    for option, value in (
        ("--compare", compare),
        ("--every", every),
        ("--recipe", where["recipe"]),
        ("--seed", where["seed"] or None),
    ):
        if value is not None:
            raise UsageError(f"`{run}` is a tokenizer: it has no masks for `{option}`")
    taken = {key: where[key] for key in ("reporter", "wishes", "out", "fps", "windows", "columns")}
    return visualize_tokenizer(clip, run, **taken)
