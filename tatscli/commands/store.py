"""`tats store`: inspect, check, repair, merge and encode what `tats prepare` wrote."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tatscli.commands.encode import EPILOG as ENCODE_EPILOG
from tatscli.commands.encode import encode
from tatscli.commands.options import Json, Quiet, Verbose, reporter
from tatscli.errors import Exit

if TYPE_CHECKING:
    from tatscli.store.reader import Store
    from tatscli.store.schema import Row

EPILOG = """
Examples:
  tats store info prepared/videos
  tats store verify prepared/videos
  tats store list prepared/videos --status failed
  tats store merge prepared/part1 prepared/part2 --out merged/videos
  tats store encode prepared/videos --tokenizer runs/tokenizer-vq --size 224
"""

INFO_EPILOG = """\b
Examples:
  tats store info prepared/videos
  tats store info prepared/videos --json
"""

VERIFY_EPILOG = """\b
Examples:
  tats store verify prepared/videos
  tats store verify prepared/videos --decode --workers 8
  tats store verify prepared/videos --repair

Exit codes: 0 everything is as it was written, 1 something is wrong, even if --repair dealt with it.
"""

LIST_EPILOG = """\b
Examples:
  tats store list prepared/videos
  tats store list prepared/videos --status failed
  tats store list prepared/videos --split val --motion none --limit 10 --json
"""

LISTS_EPILOG = """\b
Examples:
  tats store lists prepared/videos --out lists/videos
"""

MERGE_EPILOG = """\b
Examples:
  tats store merge prepared/part1 prepared/part2 --out merged/videos
"""

_SHOWN = 20  # findings in the table of `verify`; all are in --json

StoreArgument = Annotated[
    Path, typer.Argument(metavar="STORE", help="A folder that `tats prepare` wrote.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Shards read at a time.  [default: 4 more than cores]")
]

store = typer.Typer(
    rich_markup_mode=None, help="Inspect, check, repair, list, merge and encode stores"
)


@store.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)


@store.command("info", epilog=INFO_EPILOG)
def info(
    path: StoreArgument, json: Json = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Show what a store holds: settings, counts, hours, bytes, codecs, classes."""
    from tatscli.store.reader import Store

    report = reporter(json, quiet, verbose)
    facts = _facts(Store.open(path))
    settings, counts = facts["settings"], ("videos", "failed", "frames", "hours", "bytes", "shards")
    lines: list[tuple[str, object]] = [("format", facts["format_version"])]
    lines += [("part", facts["part"])] if facts["part"] else []
    lines += [("settings", ", ".join(f"{name} {value}" for name, value in settings.items()))]
    lines += [(name, facts[name]) for name in counts]
    lines += [
        (name, ", ".join(f"{key} {count}" for key, count in facts[name].items()) or "-")
        for name in ("splits", "motion", "codecs", "sizes")
    ]
    names = facts["class_names"]
    lines += [("classes", f"{len(names)}: {', '.join(names[:10])}{' ...' * (len(names) > 10)}")]
    lines += [
        (f"{key} of a class", f"one of {len(group['names'])}")
        for key, group in facts["class_groups"].items()
    ]
    report.table(str(path), ("", ""), lines)
    report.result(facts)


@store.command("verify", epilog=VERIFY_EPILOG)
def verify(
    path: StoreArgument,
    decode: Annotated[
        bool,
        typer.Option("--decode", help="Also decode the first and last frame of each video."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Drop what is broken, so that the next `tats prepare` re-creates it."
        ),
    ] = False,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Read a whole store and compare every video with its checksum."""
    from tatscli.store import verify as checking
    from tatscli.store.reader import Store

    report = reporter(json, quiet, verbose)
    opened = Store.open(path)
    verdict = checking.verify(opened, workers=workers, reporter=report, decode=decode)
    for note in verdict.notes:
        report.info(note)
    findings = verdict.findings
    if findings:
        shown = [(one.id or one.shard or path, one.problem) for one in findings[:_SHOWN]]
        if len(findings) > _SHOWN:
            shown.append((f"and {len(findings) - _SHOWN} more", "see --json"))
        report.table("Wrong", ("where", "what"), shown)
    dropped = checking.repair(opened, verdict, reporter=report) if repair and findings else 0
    if dropped:
        report.warn(
            f"`{path}` is unfinished now; rerun the same `tats prepare` to re-create its"
            f" {dropped} missing"
        )
    elif findings and not repair:
        report.info("`--repair` drops what is broken; then rerun the same `tats prepare`")
    if not findings:
        report.info(f"nothing is wrong with {verdict.videos} videos")
    report.result(
        {
            "videos": verdict.videos,
            "bytes": verdict.bytes,
            "seconds": round(verdict.seconds, 3),
            "findings": [
                {"id": one.id, "shard": one.shard, "problem": one.problem} for one in findings
            ],
            "notes": verdict.notes,
            "dropped": dropped,
        }
    )
    return Exit.FAILED if findings else Exit.OK


@store.command("list", epilog=LIST_EPILOG)
def list_rows(
    path: StoreArgument,
    status: Annotated[
        Literal["ok", "failed"] | None, typer.Option(help="Only videos with this status.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only videos of this split.")] = None,
    motion: Annotated[
        Literal["native", "reencode", "none"] | None,
        typer.Option(help="Only videos with motion from this source."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show at most this many.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Print the videos of a store, one per line."""
    from tatscli.store.reader import Store

    report = reporter(json, quiet, verbose)
    opened = Store.open(path)
    if split is not None:
        opened.check_split(split)
    found = [
        row
        for row in opened.rows
        if status in (None, row.status)
        and row.in_split(split)
        and (motion is None or (row.status, row.motion) == ("ok", motion))
    ]
    shown = found[:limit]
    if json:
        rows = [row.model_dump(mode="json") for row in shown]
        report.result({"found": len(found), "rows": rows})
        return
    for row in shown:
        report.stdout.write("\t".join(_line(row, opened.class_names)) + "\n")
    if len(found) > len(shown):
        report.info(f"showing {len(shown)} of {len(found)}")


@store.command("lists", epilog=LISTS_EPILOG)
def lists(
    path: StoreArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the lists.")],
    root: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder to put before relative paths.")
    ] = None,
    separator: Annotated[
        str, typer.Option(help="Field separator: a space, or a comma for CSV tables.")
    ] = " ",
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the splits of a store as lists that VideoMAE and similar code read."""
    from tatscli.store.lists import write_lists
    from tatscli.store.reader import Store

    report = reporter(json, quiet, verbose)
    written = write_lists(Store.open(path), out, root=root, separator=separator)
    report.info(f"wrote {', '.join(f'`{file}`' for file in written)}")
    report.result({"lists": [str(file) for file in written]})


@store.command("merge", epilog=MERGE_EPILOG)
def merge(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="STORE...", help="Finished stores, or all parts of one store."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STORE", help="The new store.")],
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Merge stores with the same settings; shards are hard-linked where possible, else copied."""
    from tatscli.store import merge as joining

    report = reporter(json, quiet, verbose)
    merged = joining.merge(paths, out, report)
    counts = merged.dataset.counts
    columns = ("stores", "ok", "failed", "frames", "repeated", "linked", "copied")
    values = (
        len(paths),
        counts.ok,
        counts.failed,
        counts.frames,
        merged.repeated,
        merged.linked,
        merged.copied,
    )
    report.table("Merged", columns, [values])
    report.info(f"wrote `{out}`")
    report.result({**dict(zip(columns, values, strict=True)), "store": str(out)})


store.command("encode", epilog=ENCODE_EPILOG)(encode)


def _facts(opened: Store) -> dict[str, Any]:
    """Gather what `info` shows."""
    dataset = opened.dataset
    ok = [row for row in opened.rows if row.status == "ok"]
    shards = sorted({row.shard for row in ok if row.shard is not None})
    return {
        "store": str(opened.path),
        "format_version": dataset.format_version,
        "part": dataset.part,
        "settings": dataset.settings.model_dump(mode="json"),
        "videos": dataset.counts.ok,
        "failed": dataset.counts.failed,
        "frames": dataset.counts.frames,
        "hours": round(sum(row.duration for row in ok) / 3600, 4),
        "bytes": sum((opened.path / shard).stat().st_size for shard in shards),
        "shards": len(shards),
        "splits": dataset.counts.splits,
        "motion": dict(Counter(row.motion for row in ok).most_common()),
        "codecs": dict(Counter(row.codec or "unknown" for row in ok).most_common()),
        "sizes": dict(Counter(f"{row.width}x{row.height}" for row in ok).most_common(10)),
        "class_names": opened.class_names,
        "class_groups": {
            key: group.model_dump(mode="json") for key, group in opened.class_groups.items()
        },
        "fingerprint": opened.fingerprint(),
    }


def _line(row: Row, class_names: list[str]) -> list[str]:
    """Return the fields of a line of `list`."""
    label = "-" if row.label is None else class_names[row.label]
    if row.status == "failed":
        return [row.id, row.status, row.split or "-", label, row.reason or ""]
    size = f"{row.width}x{row.height}"
    facts = [f"{row.frames} frames", size, row.codec or "-", f"motion {row.motion}"]
    return [row.id, row.status, row.split or "-", label, *facts]
