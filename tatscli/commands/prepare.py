"""`tats prepare`: turn a folder or lists of videos into a store of frames and codec motion."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tatscli.commands.options import Json, Quiet, Verbose, reporter

if TYPE_CHECKING:
    from tatscli.console import Reporter
    from tatscli.store.pool import Runner
    from tatscli.store.prepare import Report
    from tatscli.store.sources import Sources

EPILOG = """
Examples:
  tats prepare ./videos
  tats prepare ./videos --out prepared/mine --workers 8 --motion-cell 8
  tats prepare ./videos --annotations train.csv --annotations val.csv
  tats prepare ssv2/videos --dataset ssv2 --annotations ssv2/labels --out prepared/ssv2
  tats prepare UCF-101 --dataset ucf101 --annotations ucfTrainTestlist --out prepared/ucf101
  tats prepare ./videos/train --val-share 0.2
  tats prepare ./videos --frames none --motion native
  tats prepare ./videos --check --json
  tats prepare ./videos --out prepared/mine --engine ray --address auto
  tats prepare ./videos --out prepared/mine --part 3/8

Exit codes: 0 every video is ok, 1 some failed (the manifest says why), or there are none, or the
disk is full, 2 invalid command line, 130 interrupted (rerun the same command to continue).
"""

_SHOWN = 20  # failures in the closing table; all are in the manifest and in --json

Dataset = Literal[
    "auto", "list", "folders", "ssv2", "kinetics", "ucf101", "hmdb51", "diving48", "epic100"
]


def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Folder of videos; sub-folders are classes, train/ and val/ are splits.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="STORE", help="Where to write.  [default: prepared/NAME of SRC]"
        ),
    ] = None,
    annotations: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[SPLIT=]FILE",
            help="List of videos with or without labels, or a data set's own annotation file or"
            " folder; repeatable. SPLIT defaults to the file's stem.",
        ),
    ] = None,
    dataset: Annotated[
        Dataset,
        typer.Option(help="Format of the annotations; auto reports what it recognised."),
    ] = "auto",
    labels: Annotated[
        Literal["action", "verb", "noun"] | None,
        typer.Option(help="What a class is in EPIC-KITCHENS.  [default: action]"),
    ] = None,
    frames: Annotated[
        Literal["jpeg", "none"],
        typer.Option(help="Store frames as JPEG, or none: motion only, which is faster."),
    ] = "jpeg",
    short_side: Annotated[
        int,
        typer.Option(
            min=0, help="Scale larger frames down to this short side; 0 keeps every size."
        ),
    ] = 256,
    quality: Annotated[
        int,
        typer.Option(min=2, max=31, help="JPEG quality on FFmpeg's scale: 2 best, 31 smallest."),
    ] = 3,
    motion: Annotated[
        Literal["auto", "native", "reencode", "none"],
        typer.Option(
            help="Source of the motion vectors: the codec's own, those of a re-encoding, or what"
            " suits each file."
        ),
    ] = "auto",
    motion_cell: Annotated[
        int, typer.Option(min=4, help="Side of a cell of the motion field, in stored pixels.")
    ] = 16,
    camera: Annotated[
        Literal["none", "median", "affine"],
        typer.Option(
            help="Subtract the camera's motion: a pan (median), or also zoom and roll (affine)."
        ),
    ] = "none",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.  [default: one per core]")
    ] = None,
    file_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a video may take; 0 is no limit.")
    ] = 60,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse videos with more pixels per frame, before decoding.")
    ] = 1 << 26,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Refuse longer videos.  [default: no limit]")
    ] = None,
    max_duration: Annotated[
        float | None,
        typer.Option(min=0, help="Refuse videos of more seconds.  [default: no limit]"),
    ] = None,
    min_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Fail a video or segment if less than this share of its frames is there.",
        ),
    ] = 0.5,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Address of the Ray cluster; `auto` is the one this machine belongs to."),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Prepare only the I-th of N parts, as STORE.part-I-of-N; `tats store merge` joins"
            " them.",
        ),
    ] = None,
    val_share: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Hold out this share of the videos without a split, of each class alike and always"
            " the same ones, as split `val`.",
        ),
    ] = None,
    val_group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Keep videos together in whose paths it finds the same text, such as a person.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Decode every video and report, but write nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Retry what failed in an earlier run.")
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Add the videos of SRC to an existing store.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an existing store and start from scratch.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Turn videos into a store of frames and motion vectors; run it again to continue."""
    from contextlib import ExitStack
    from functools import partial

    from tatscli.errors import Exit, UsageError
    from tatscli.machine import usable_cores
    from tatscli.store import prepare as pipeline
    from tatscli.store.holdout import Holdout
    from tatscli.store.pool import run_in_order
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources
    from tatscli.video.decode import Limits

    if address is not None and engine != "ray":
        raise UsageError("`--address` needs `--engine ray`")
    if address is not None and workers is not None:
        raise UsageError(
            "`--workers` is for this machine; the nodes of a cluster set their own number"
        )
    if frames == "none" and motion == "none":
        raise UsageError("`--frames none --motion none` leaves nothing to store")
    if check and val_share is not None:
        raise UsageError("`--check` writes nothing, so it takes no `--val-share`")
    kept = {"--add": add, "--retry-failed": retry_failed}
    if check and (out is not None or overwrite or any(kept.values())):
        raise UsageError(
            "`--check` writes nothing, so it takes no `--out`, `--add`, `--retry-failed` and"
            " `--overwrite`"
        )
    if overwrite and any(kept.values()):
        names = " and ".join(f"`{name}`" for name, given in kept.items() if given)
        raise UsageError(f"`--overwrite` deletes what {names} would keep", "leave out one of them")
    if val_group is not None and val_share is None:
        raise UsageError("`--val-group` needs `--val-share`, the share to hold out")
    if val_share is not None and not 0 < val_share < 1:
        raise UsageError(f"`--val-share {val_share:g}` must be between 0 and 1, such as 0.2")
    report = reporter(json, quiet, verbose)
    share = _part(part)
    store = out or Path("prepared") / (source.resolve().name or "videos")
    if share is not None:
        if not store.name:
            raise UsageError(
                f"`--out {store}` has no name from which a part could be named",
                "give the name of a folder, such as `--out prepared/mine`",
            )
        store = store.with_name("{}.part-{}-of-{}".format(store.name, *share))
    sources = find_sources(source, annotations or [], dataset=dataset, labels=labels)
    for finding in sources.findings:
        report.info(finding)
    for doubt in sources.doubts:
        report.warn(doubt)
    limits = Limits(max_pixels, max_frames, max_duration, min_share)
    timeout = file_timeout or None
    with ExitStack() as stack:
        run: Runner
        if engine == "ray":
            from tatscli.store.cluster import connected, run_on_ray

            # Before the store is touched, so that a wrong address leaves nothing behind.
            stack.enter_context(connected(address, workers=workers))
            run = partial(run_on_ray, timeout=timeout, shared=[source])
        else:
            run = partial(run_in_order, workers=workers or usable_cores(), timeout=timeout)
        if check:
            outcome = pipeline.check(sources, run=run, reporter=report, limits=limits, part=share)
        else:
            outcome = pipeline.prepare(
                sources,
                store,
                Settings(
                    frames=frames,
                    short_side=short_side or None,
                    quality=quality,
                    motion=motion,
                    motion_cell=motion_cell,
                    camera=camera,
                ),
                run=run,
                reporter=report,
                limits=limits,
                overwrite=overwrite,
                retry_failed=retry_failed,
                add=add,
                part=share,
                holdout=Holdout(val_share, val_group) if val_share else None,
            )
    _show(report, sources, outcome, None if check else store)
    return Exit.FAILED if outcome.failures else Exit.OK


def _part(text: str | None) -> tuple[int, int] | None:
    """Read `I/N`."""
    from tatscli.errors import UsageError

    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"`--part {text}` must be I/N with 1 <= I <= N",
            "such as `--part 3/8`, or `--part $SLURM_ARRAY_TASK_ID/8` in a SLURM array from 1 to 8",
        )
    return int(found[1]), int(found[2])


def _show(report: Reporter, sources: Sources, outcome: Report, store: Path | None) -> None:
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
    origins: Counter[tuple[str, str | None]] = Counter()
    if store:  # a check looks for no motion
        ok = [row for row in outcome.rows if row.status == "ok"]
        origins.update((row.motion, row.motion_why) for row in ok)
        origin_lines = [(kind, why or "-", n) for (kind, why), n in origins.most_common(_SHOWN)]
        report.table("Motion", ("from", "because", "videos"), origin_lines)
    if failures:
        shown = [(row.id, row.reason) for row in failures[:_SHOWN]]
        if len(failures) > _SHOWN:
            shown.append((f"and {len(failures) - _SHOWN} more", "see manifest.jsonl, or --json"))
        report.table("Failed", ("video", "reason"), shown)
    for row in outcome.warnings:
        report.detail(f"`{row.id}`: {row.warning}")
    if outcome.warnings:
        report.warn(
            f"{len(outcome.warnings)} ok but damaged or incomplete, such as"
            f" `{outcome.warnings[0].id}`: {outcome.warnings[0].warning}; `--verbose` and the"
            " manifest tell all"
        )
    if store:
        report.info(f"wrote `{store}`")
    motions = Counter(kind for kind, _ in origins.elements())
    report.result(
        {
            "ok": counts.ok,
            "failed": counts.failed,
            "missing": sources.missing,
            "frames": counts.frames,
            "dataset": sources.dataset,
            "motion": {kind: motions[kind] for kind in ("native", "reencode", "none")},
            "seconds": round(outcome.seconds, 3),
            "failures": [{"id": row.id, "reason": row.reason} for row in failures],
            "warnings": [{"id": row.id, "reason": row.warning} for row in outcome.warnings],
            "store": str(store) if store else None,
        }
    )
