"""`tats motion`: the motion vectors of one video, as a field or as raw rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter

EPILOG = """
Examples:
  tats motion clip.mp4
  tats motion clip.mp4 -o vectors.safetensors --raw
  tats motion clip.mp4 --motion reencode --motion-cell 8 --camera affine --json

Exit codes: 0 written, 1 the file cannot be decoded or its codec exports no rows, 2 wrong command
line.
"""


def motion(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file of any length.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="A safetensors file.  [default: CLIP's stem .motion.safetensors]",
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Write every vector that the codec exports, not a field."),
    ] = False,
    motion: Annotated[
        Literal["auto", "native", "reencode"] | None,
        typer.Option(
            help="Source of the motion vectors: the codec (native), a re-encoding (reencode), or"
            " whichever suits the file (auto).  [default: auto]"
        ),
    ] = None,
    motion_cell: Annotated[
        int | None,
        typer.Option(min=4, help="Cell size of the field, in stored pixels.  [default: 16]"),
    ] = None,
    camera: Annotated[
        Literal["none", "median", "affine"] | None,
        typer.Option(help="Subtract camera motion: a pan, or an affine fit.  [default: none]"),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Short side of the picture in whose pixels motion is measured; 0 is the original"
            " size.  [default: 256]",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Write the motion vectors of a video to a safetensors file."""
    from tatscli.errors import Exit, UsageError
    from tatscli.tasks.motion import write_field, write_rows

    report = reporter(json, quiet, verbose)
    target = out or Path(f"{clip.stem}.motion.safetensors")
    if target.suffix != ".safetensors":
        raise UsageError(f"cannot write `{target}`: its suffix must be .safetensors")
    if target.is_dir():
        raise UsageError(f"`{target}` is a folder", "give the name of a file")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder `{target.parent}`", "create it first")
    chosen = {"motion": motion, "motion_cell": motion_cell, "camera": camera}
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    if short_side is not None:
        given["short_side"] = short_side or None
    if raw and given:
        names = ", ".join(f"`--{name.replace('_', '-')}`" for name in given)
        raise UsageError(f"{names} apply to the field; `--raw` writes the codec's rows unchanged")
    done = write_rows(clip, target) if raw else write_field(clip, target, **given)
    if done.warning:
        report.warn(f"`{clip}` is {done.warning}")
    kind, why = done.origin.kind, done.origin.why
    lines = [("frames", done.frames), ("with vectors", done.moving), ("source", f"{kind}: {why}")]
    if done.rows is not None:
        lines.append(("rows", done.rows))
    report.table("Motion", ("what", "value"), lines)
    report.info(f"wrote `{target}`")
    report.result(
        {
            "frames": done.frames,
            "moving": done.moving,
            "rows": done.rows,
            "origin": kind,
            "why": why,
            "warning": done.warning,
            "file": str(target),
        }
    )
    return Exit.OK
