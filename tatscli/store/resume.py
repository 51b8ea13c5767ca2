"""How a `prepare` run begins: in a new folder, or with what an earlier run has finished."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tatscli.errors import DataError, UsageError
from tatscli.jsonfiles import reason_of
from tatscli.lock import LOCK
from tatscli.store.holdout import Holdout
from tatscli.store.schema import (
    DATASET,
    FORMAT_VERSION,
    MANIFEST,
    SHARDS,
    Dataset,
    Row,
    Settings,
    join_groups,
    read_rows,
    write_dataset,
    write_rows,
)
from tatscli.store.shards import Shard
from tatscli.store.sources import Source, Sources

_OTHER = "give another `--out`, or `--overwrite` to delete this store and start from scratch"
_BEGINNINGS = {LOCK, f".{DATASET}.part"}  # what a run killed at its very start may leave


@dataclass(frozen=True, slots=True)
class Start:
    """What is left to do.

    Attributes:
        dataset: Of the store, not complete yet.
        kept: Rows that stay, by id.
        rest: Sources to convert, sorted by id.
        changed: Ids of sources in `rest` that were converted before, from a file of another size
            or another segment of it.
    """

    dataset: Dataset
    kept: dict[str, Row]
    rest: list[Source]
    changed: list[str]


def claim(out: Path) -> None:
    """Create the folder of a store if it does not exist.

    Raises:
        UsageError: It is a file, or holds something that is not a store.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"`{out}` is a file", "give a folder for the store")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / DATASET).is_file() and not {path.name for path in out.iterdir()} <= _BEGINNINGS:
        raise UsageError(f"`{out}` is not empty and not a store", "give a new or empty folder")


def begin(
    out: Path,
    sources: Sources,
    settings: Settings,
    *,
    part: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    add: bool = False,
    holdout: Holdout | None = None,
) -> Start:
    """Prepare the folder for writing and return what is left to do.

    Labels and splits of what stays are taken from the present sources. Shards and temporary files
    that a killed run left without a row are removed.

    Raises:
        UsageError: The store has other settings, another part, another share for validation, other
            sources or, with `add`, other class groups.
        DataError: The store is damaged, or `add` brings another file under a known id.
    """
    names, groups = tuple(sources.class_names), sources.class_groups
    items: Sequence[Source] = sources.items
    share, group = (holdout.share, holdout.group) if holdout else (None, None)
    kept: dict[str, Row] = {}
    changed: list[str] = []
    if (out / DATASET).is_file() and not overwrite:
        dataset, rows = _read(out)
        _check_alike(out, dataset, settings, part)
        if add:
            names, items = _with_classes(dataset.class_names, sources)
            parts = [(dataset.class_names, dataset.class_groups), (sources.class_names, groups)]
            groups = join_groups(parts, names)
            share, group = share or dataset.val_share, group or dataset.val_group
        elif (dataset.val_share, dataset.val_group) != (share, group):
            share, group = dataset.val_share, dataset.val_group
            begun = f"with `--val-share {share}`" if share else "without `--val-share`"
            begun += f" and `--val-group {group}`" if group else ""
            raise UsageError(f"`{out}` was begun {begun}", f"give the same again; or {_OTHER}")
        elif dataset.class_names != names:
            raise UsageError(
                f"`{out}` was begun with {len(dataset.class_names)} classes; the sources now have"
                f" {len(names)} classes, or other ones",
                f"`--add` joins the classes by name; or {_OTHER}",
            )
        if not dataset.complete:
            rows = _whole_batches(out, rows)
        kept, changed = _kept_rows(out, rows, items, retry_failed=retry_failed, add=add)
    dataset = Dataset(
        settings=settings,
        part=part,
        class_names=names,
        val_share=share,
        val_group=group,
        class_groups=groups,
    )
    # In this order a kill in between leaves an unfinished store whose rows all have their frames.
    if overwrite and (out / DATASET).is_file():
        write_dataset(out, Dataset(settings=settings))
        write_rows(out / MANIFEST, [])
    write_dataset(out, dataset)
    write_rows(out / MANIFEST, kept.values())
    (out / SHARDS).mkdir(exist_ok=True)
    clean(out, kept.values())
    rest = [source for source in items if source.id not in kept]
    return Start(dataset, kept, rest, changed)


def clean(out: Path, rows: Iterable[Row]) -> None:
    """Remove what belongs to no row: unfinished files, and a shard that came before its rows."""
    named = {row.shard for row in rows}
    for path in (out / SHARDS).iterdir():
        if f"{SHARDS}/{path.name}" not in named:
            path.unlink()
    for path in out.glob(".spool-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in out.glob(".*.part"):
        path.unlink()


def _read(out: Path) -> tuple[Dataset, list[Row]]:
    try:
        dataset = Dataset.model_validate_json((out / DATASET).read_bytes())
        rows = read_rows(out / MANIFEST)
    except ValueError as error:
        raise DataError(f"the store `{out}` is damaged: {reason_of(error)}", _OTHER) from error
    if dataset.format_version != FORMAT_VERSION:
        raise UsageError(f"`{out}` has store format `{dataset.format_version}`", _OTHER)
    return dataset, rows


def _check_alike(out: Path, dataset: Dataset, settings: Settings, part: str | None) -> None:
    """Refuse to continue a store that is meant to be another one."""
    for name in Settings.model_fields:
        old, new = getattr(dataset.settings, name), getattr(settings, name)
        if old != new:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"`{out}` was begun with `{option} {old or 0}`, not `{new or 0}`", _OTHER
            )
    if dataset.part != part:
        old, new = (f"with `--part {one}`" if one else "whole" for one in (dataset.part, part))
        raise UsageError(f"`{out}` was begun {old}, not {new}", "give every part its own `--out`")


def _with_classes(
    known: tuple[str, ...], sources: Sources
) -> tuple[tuple[str, ...], Sequence[Source]]:
    """Join class names, old indices first, and give the sources the indices of that list."""
    names = tuple(dict.fromkeys([*known, *sources.class_names]))
    index = [names.index(name) for name in sources.class_names]
    return names, [
        source if source.label is None else replace(source, label=index[source.label])
        for source in sources.items
    ]


def _whole_batches(out: Path, rows: list[Row]) -> list[Row]:
    """Drop the rows of the last shard if those of its last videos are missing.

    A run was killed, or met a full disk, while it wrote them in the order of the videos: so the
    shard is written again, and the store comes out as if nothing had happened. Rows missing from
    earlier shards were dropped by a repair, or because their source has changed: the others stay.
    """
    last = next((row.shard for row in reversed(rows) if row.shard is not None), None)
    if last is None:
        return rows
    known = {row.id for row in rows}
    try:
        present = [video in known for video in Shard(out / last).videos]
        torn = not all(present) and present == sorted(present, reverse=True)
    except (OSError, ValueError):
        torn = True
    return [row for row in rows if row.shard != last] if torn else rows


def _kept_rows(
    out: Path, rows: list[Row], items: Iterable[Source], *, retry_failed: bool, add: bool
) -> tuple[dict[str, Row], list[str]]:
    """Return the rows that stay, and the ids of those whose source has changed."""
    current = {source.id: source for source in items}
    sizes: dict[Path, int | None] = {}
    kept: dict[str, Row] = {}
    changed: list[str] = []
    for row in rows:
        source = current.get(row.id)
        if source is None:
            if not add:
                raise UsageError(
                    f"`{out}` holds `{row.id}`, which is no longer among the sources",
                    f"`--add` keeps it and adds the new ones; or {_OTHER}",
                )
            kept[row.id] = row
            continue
        if source.path not in sizes:
            sizes[source.path] = size_of(source.path)
        size = sizes[source.path]
        if row.status == "failed":
            other = (size is not None and size != row.bytes) or not _same_segment(row, source)
            if retry_failed or other:
                continue
        elif not _same_segment(row, source):
            changed.append(row.id)
            continue
        elif row.bytes and size is not None and size != row.bytes:
            if add:
                raise DataError(
                    f"`{row.id}` is already in `{out}`, from a file of {row.bytes} bytes; now it"
                    f" has {size}",
                    "different videos need different paths; without `--add`, a file that has"
                    " changed is converted again",
                )
            changed.append(row.id)
            continue
        known = {"label": source.label, "split": source.split, "also_in": source.also_in}
        if any(getattr(row, name) != value for name, value in known.items()):
            row = row.model_copy(update=known)
        kept[row.id] = row
    return kept, changed


def _same_segment(row: Row, source: Source) -> bool:
    """Whether a row was made from this segment of the file; segments in frames are not compared."""
    segment = source.segment
    if segment is None or segment.unit == "frames":
        return (segment is None) == (row.path is None)
    return (row.start, row.end) == (segment.start, segment.end)


def size_of(path: Path) -> int | None:
    """Return the size of a source; None if it is not there."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None
