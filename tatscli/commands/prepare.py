"""`tats prepare`: turn a folder or lists of videos into a store of frames and codec motion."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter

if TYPE_CHECKING:
    from tatscli.console import Reporter
    from tatscli.store.prepare import Report

EPILOG = """
Examples:
  tats prepare ./videos
  tats prepare ./videos --out prepared/mine --workers 8
  tats prepare ssv2/videos --out prepared/ssv2 --annotations train.csv --annotations val.csv
  tats prepare ./videos --annotations test=lists/fold1.txt --short-side 320
  tats prepare ./videos --check --json

Exit codes: 0 every video is ok, 1 some failed (their reasons are in the manifest), 2 nothing could
be done.
"""

_SHOWN = 20  # failures in the closing table; all are in the manifest and in --json


def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="Folder of videos; sub-folders are classes, train/ and val/ splits."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Where to write.  [default: prepared/NAME of SRC]"),
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SPLIT=]FILE",
            help="List of videos with or without labels; repeatable. SPLIT is the file's stem.",
        ),
    ] = None,
    short_side: Annotated[
        int, typer.Option(min=0, help="Larger pictures are scaled down to it; 0 keeps every size.")
    ] = 256,
    quality: Annotated[
        int,
        typer.Option(min=1, max=31, help="JPEG quality on FFmpeg's scale: 2 best, 31 smallest."),
    ] = 3,
    motion_cell: Annotated[
        int, typer.Option(min=1, help="Side of a cell of the motion field, in stored pixels.")
    ] = 16,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.  [default: one for each core]")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only decode every video and report; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing store and start anew.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn videos into a store of frames and motion vectors; run it again to continue."""
    from functools import partial

    from tatscli.errors import Exit
    from tatscli.store import prepare as pipeline
    from tatscli.store.pool import run_in_order
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources

    report = reporter(json, quiet, verbose)
    sources = find_sources(source, annotations or [])
    for finding in sources.findings:
        report.info(finding)
    for doubt in sources.doubts:
        report.warn(doubt)
    run = partial(run_in_order, workers=workers or _cores())
    if check:
        store = None
        outcome = pipeline.check(sources, run=run, reporter=report)
    else:
        store = out or Path("prepared") / (source.resolve().name or "videos")
        settings = Settings(short_side=short_side or None, quality=quality, motion_cell=motion_cell)
        outcome = pipeline.prepare(
            sources, store, settings, run=run, reporter=report, overwrite=overwrite
        )
    _show(report, outcome, store)
    return Exit.FAILED if outcome.failures else Exit.OK


def _show(report: Reporter, outcome: Report, store: Path | None) -> None:
    """Print the closing tables and the JSON object."""
    counts, failures = outcome.counts, outcome.failures
    splits = Counter(row.split or "all" for row in outcome.rows)
    lines = []
    for split in sorted(splits):
        rows = [row for row in outcome.rows if (row.split or "all") == split]
        ok = [row for row in rows if row.status == "ok"]
        frames = sum(row.frames for row in ok)
        moving = sum(row.moving for row in ok)
        motion = f"{100 * moving / frames:.0f} %" if frames and store else "-"
        lines.append((split, len(ok), len(rows) - len(ok), frames, motion))
    title = (
        f"Prepared in {outcome.seconds:.0f} s" if store else f"Checked in {outcome.seconds:.0f} s"
    )
    report.table(title, ("split", "ok", "failed", "frames", "with motion"), lines)
    if failures:
        shown = [(row.id, row.reason) for row in failures[:_SHOWN]]
        if len(failures) > _SHOWN:
            shown.append((f"and {len(failures) - _SHOWN} more", "see manifest.jsonl, or --json"))
        report.table("Failed", ("video", "reason"), shown)
    for row in outcome.warnings:
        report.detail(f"`{row.id}`: {row.warning}")
    if outcome.warnings:
        report.warn(f"{len(outcome.warnings)} damaged but ok; `--verbose` and the manifest say why")
    if store:
        report.info(f"wrote `{store}`")
    report.result(
        {
            "ok": counts.ok,
            "failed": counts.failed,
            "frames": counts.frames,
            "seconds": round(outcome.seconds, 3),
            "failures": [{"id": row.id, "reason": row.reason} for row in failures],
            "warnings": [{"id": row.id, "reason": row.warning} for row in outcome.warnings],
            "store": str(store) if store else None,
        }
    )


def _cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
