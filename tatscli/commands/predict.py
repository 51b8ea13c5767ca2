"""`tats predict`: what a fine-tuned run sees in videos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from tatscli.console import Reporter

EPILOG = """Examples:

  tats predict clip.mp4 --run runs/ucf101-finetune

  tats predict clip.mp4 --run runs/ucf101-finetune --out clip.predicted.mp4

  tats predict videos/val clip.mp4 --run runs/ucf101-finetune --top 3 --json

  tats predict clip.mp4 --run runs/ucf101-finetune --every 0.25

  tats predict clip.mp4 --run runs/ucf101-finetune --windows 5 --crops 3
"""


def predict(
    clips: Annotated[
        list[Path],
        typer.Argument(metavar="CLIP...", help="Video files of any length, and folders of them."),
    ],
    run: Annotated[
        Path, typer.Option("--run", help="A fine-tuned run, or one of its checkpoints.")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Classes to name.")] = 5,
    windows: Windows = None,
    every: Every = None,
    crops: Annotated[
        int, typer.Option("--crops", help="Views of each window: 1 (the centre) or 3.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Write the video with its predictions drawn, without sound: an mp4, mkv or mov; "
            "of several clips a folder.",
        ),
    ] = None,
    device: Device = "auto",
    checkpoint: WhichCheckpoint = Which.LAST,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Name what videos show: the most probable classes of every window and of the whole."""
    from tatscli.errors import Exit, UsageError
    from tatscli.tasks.predict import predict as run_prediction

    say = reporter(json, quiet, verbose)
    if crops not in (1, 3):
        raise UsageError(f"`--crops {crops}` must be 1 or 3")
    result = run_prediction(
        clips,
        run,
        reporter=say,
        top=top,
        windows=windows,
        every=every,
        crops=crops,
        out=out,
        device=device,
        prefer=checkpoint.value,
    )
    _show(result, say)
    say.result(result)
    return Exit.FAILED if result["failed"] else Exit.OK


def _show(result: dict[str, Any], say: Reporter) -> None:
    clips = result["clips"]
    if clips:
        rows = [
            (clip["clip"] if place == 0 else "", best["class"], f"{best['probability']:.4f}")
            for clip in clips
            for place, best in enumerate(clip["top"])
        ]
        say.table("predictions", ["clip", "class", "probability"], rows)
    if len(clips) == 1 and len(clips[0]["windows"]) > 1:
        windows = [
            (
                f"{window['start']:.2f} to {window['end']:.2f}",
                window["top"][0]["class"],
                f"{window['top'][0]['probability']:.4f}",
            )
            for window in clips[0]["windows"]
        ]
        say.table("window by window", ["seconds", "class", "probability"], windows)
    for clip in clips:
        if "out" in clip:
            say.info(f"wrote {clip['out']}")
    if result["failed"]:
        say.warn(f"{len(result['failed'])} of {len(result['failed']) + len(clips)} clips failed")
