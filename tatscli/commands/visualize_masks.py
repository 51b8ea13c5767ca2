"""`tats visualize-masks`: what a mask hides of a clip, and what a model predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter, view_size

EPILOG = """Examples:

  tats visualize-masks clip.mp4

  tats visualize-masks clip.mp4 --mask random --ratio 0.75 --out clip.png

  tats visualize-masks clip.mp4 --mask mgm --size 128x224

  tats visualize-masks clip.mp4 --compare random,tube,mgm --out masks.png

  tats visualize-masks clip.mp4 --run runs/ssv2 --out clip.gif --windows 2

  tats visualize-masks clip.mp4 --recipe ssv2 --as train --windows 3 --out draws.png

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
        typer.Option(
            "--run", help="A pretrained run, adds its reconstruction and error; or a tokenizer run."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", help="Take mask and clip shape from this recipe, without weights."
        ),
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", help="Kind of mask.", show_default="the run's, or tube")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MASK,MASK,...",
            help="Show several kinds of masks on the same frames, one row each.",
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
    phase: Annotated[
        Literal["train", "test"],
        typer.Option(
            "--as",
            help="Show the clips of evaluation, or those that training draws from the video: "
            "frames, crop and flip.",
        ),
    ] = "test",
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=1, help="Frames in a window.", show_default="16"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            help="Source frames from one frame of a window to the next.",
            show_default="4",
        ),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", min=1, help="Side of a token in pixels.", show_default="16"),
    ] = None,
    tubelet: Annotated[
        int | None,
        typer.Option("--tubelet", min=1, help="Frames in a token.", show_default="2"),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Seed of the masks, and of clips drawn as `train`.")
    ] = 0,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.1,
            max=120,
            help="Frames per second of the film.",
            show_default="the clip's own; 2 with --every",
        ),
    ] = None,
    windows: Annotated[
        int | None,
        typer.Option(
            "--windows",
            min=1,
            help="Windows to show.",
            show_default="all that cover the video, or 1 if drawn or uniform; 1 in a png or with "
            "--every",
        ),
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            min=1,
            help="Most slices that a png shows, evenly spaced.",
            show_default="16",
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            min=1,
            help="Show how the policy developed: every N-th of the kept checkpoints.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="For learned masks: below 1 sharpens the policy, above 1 flattens it.",
            show_default="1",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw masks on a clip: probabilities, visible tokens, reconstruction, error, motion."""
    from tatscli.errors import UsageError
    from tatscli.nn.load import is_tokenizer
    from tatscli.tasks.compare_masks import compare_masks
    from tatscli.tasks.visualize_masks import Overrides
    from tatscli.tasks.visualize_masks import visualize_masks as draw

    console = reporter(json, quiet, verbose)
    pixels = None if size is None else view_size(size)
    overrides = Overrides(mask, ratio, pixels, frames, stride, patch, tubelet, temperature)
    where: dict[str, Any] = {
        "reporter": console,
        "run": run,
        "recipe": recipe,
        "overrides": overrides,
        "out": out,
        "seed": seed,
        "fps": fps,
        "windows": windows,
        "columns": columns,
        "phase": phase,
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
        console.info(f"checkpoints of {run} shown: {', '.join(steps)}")
    slices, rows, columns = result["grid"]
    console.info(
        f"wrote {result['out']}: {count} {'window' if count == 1 else 'windows'} of "
        f"{slices} x {rows} x {columns} tokens, {names}"
    )
    console.result(result)


def _draw_tokenizer(
    where: dict[str, Any], clip: Path, *, compare: str | None, every: int | None
) -> dict[str, Any]:
    """Draw a tokenizer's reconstruction, scores and codes of a clip.

    Raises:
        UsageError: If an option about masks is given.
    """
    from tatscli.errors import UsageError
    from tatscli.tasks.visualize_tokenizer import visualize_tokenizer

    run = where["run"]
    for option, value in (
        ("--compare", compare),
        ("--every", every),
        ("--recipe", where["recipe"]),
        ("--seed", where["seed"] if where["phase"] == "test" and where["seed"] else None),
    ):
        if value is not None:
            raise UsageError(f"`{run}` is a tokenizer: it has no masks for `{option}`")
    taken = {key: value for key, value in where.items() if key not in ("run", "recipe")}
    return visualize_tokenizer(clip, run, **taken)
