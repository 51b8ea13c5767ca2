"""Merging stores, such as the parts made by the jobs of a cluster, without copying shards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.files import publish, sync
from tatscli.lock import locked
from tatscli.store.reader import Store
from tatscli.store.schema import (
    MANIFEST,
    SHARDS,
    ClassGroups,
    Counts,
    Dataset,
    Row,
    Settings,
    join_groups,
    write_dataset,
    write_rows,
)

_PLACES = {"shard", "split", "also_in"}  # where a video is stored and listed, not what it is


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge.

    Attributes:
        dataset: Of the new store.
        repeated: Videos held by several stores, of which one was taken.
        linked: Shards that share their bytes with the old stores.
        copied: Shards that had to be copied.
    """

    dataset: Dataset
    repeated: int
    linked: int
    copied: int


def merge(stores: Sequence[Path], out: Path, reporter: Reporter) -> Merged:
    """Join finished stores into a new one, which appears complete or not at all.

    Shards are hard links to the old ones where the file system allows it, copies elsewhere; the old
    stores may be deleted afterwards.

    Args:
        stores: With the same settings and different videos.
        out: Folder of the new store; must not exist.
        reporter: Receives messages and progress.

    Raises:
        UsageError: The stores do not fit together, or `out` exists.
        DataError: A store cannot be used, or the new one cannot be written.
    """
    if not out.name:
        raise UsageError(f"`{out}` is not a valid name for a new store", "give another `--out`")
    opened = [Store.open(path) for path in stores]
    _check_alike(opened)
    _check_parts(opened)
    names, rows, repeated = _joined(opened)
    groups = _joined_groups(opened, names, reporter)
    building = out.with_name(f".{out.name}.merging")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock"), out, reporter), _space(building, out):
            linked, copied = _gather(opened, rows, building, reporter)
            merged = sorted((row for rows_of in rows for row in rows_of), key=lambda row: row.id)
            write_rows(building / MANIFEST, merged)
            dataset = Dataset(
                complete=True,
                settings=opened[0].settings,
                class_names=names,
                class_groups=groups,
                counts=Counts.of(merged),
            )
            write_dataset(building, dataset)
            publish(building, out)
    except OSError as error:
        raise DataError(
            f"cannot write `{error.filename or out}`: {error.strerror}",
            "the old stores are unchanged; fix this, then rerun the same command",
        ) from error
    return Merged(dataset, repeated, linked, copied)


@contextmanager
def _space(building: Path, out: Path) -> Iterator[None]:
    """Provide an empty folder, removed afterwards unless it has become the store."""
    if out.exists():
        raise UsageError(f"`{out}` already exists", "give another `--out`")
    shutil.rmtree(building, ignore_errors=True)  # of a merge that was killed
    (building / SHARDS).mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_alike(stores: Sequence[Store]) -> None:
    first = stores[0]
    for other in stores[1:]:
        if other.path.resolve() in [one.path.resolve() for one in stores if one is not other]:
            raise UsageError(f"`{other.path}` is given twice", "give each store once")
        for name in Settings.model_fields:
            one, two = getattr(first.settings, name), getattr(other.settings, name)
            if one != two:
                option = "--" + name.replace("_", "-")
                raise UsageError(
                    f"`{first.path}` was prepared with `{option} {one or 0}`, `{other.path}` with"
                    f" `{option} {two or 0}`",
                    "only stores with the same settings can be merged",
                )


def _check_parts(stores: Sequence[Store]) -> None:
    """Refuse an incomplete set of parts; nobody would notice the missing videos later."""
    parts = {store.dataset.part: store for store in stores}
    if set(parts) == {None}:
        return
    if None in parts:
        whole = parts[None]
        raise UsageError(
            f"`{whole.path}` is a whole store, others are parts of one",
            "merge the parts first, then the whole stores",
        )
    totals = {part.partition("/")[2] for part in parts if part}
    if len(totals) > 1 or len(parts) < len(stores):
        held = ", ".join(f"`{store.path}` is {store.dataset.part}" for store in stores)
        raise UsageError(f"these are not the parts of one store: {held}", "merge parts 1/N to N/N")
    (total,) = totals
    missing = [
        f"{number}/{total}"
        for number in range(1, int(total) + 1)
        if f"{number}/{total}" not in parts
    ]
    if missing:
        shown = ", ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
        raise UsageError(
            f"{len(missing)} of {total} parts are missing: {shown}",
            "prepare them with the same command and `--part I/N`, then merge all parts",
        )


def _joined(stores: Sequence[Store]) -> tuple[tuple[str, ...], list[list[Row]], int]:
    """Return the class names, the rows to take from each store, and how many were repeated."""
    names = tuple(dict.fromkeys(name for store in stores for name in store.class_names))
    index = {name: number for number, name in enumerate(names)}
    first: dict[str, tuple[Row, Store]] = {}
    repeated = 0
    for store in stores:
        for row in store.rows:
            if row.label is not None:
                row = row.model_copy(update={"label": index[store.class_names[row.label]]})
            if row.id not in first:
                first[row.id] = row, store
                continue
            known, holder = first[row.id]
            differ = [
                f"`{name}`"
                for name in Row.model_fields
                if name not in _PLACES and getattr(known, name) != getattr(row, name)
            ]
            if differ:
                raise UsageError(
                    f"`{row.id}` is a different video in `{store.path}` than in `{holder.path}`:"
                    f" {', '.join(differ)} differ",
                    "ids are relative to the prepared folder; prepare both from a common folder",
                )
            splits = dict.fromkeys([known.split, *known.also_in, row.split, *row.also_in])
            listed = [one for one in splits if one is not None]
            update = {"split": next(iter(listed), None), "also_in": tuple(listed[1:])}
            first[row.id] = known.model_copy(update=update), holder
            repeated += 1
    taken = {
        id(store): [row for row, holder in first.values() if holder is store] for store in stores
    }
    return names, [taken[id(store)] for store in stores], repeated


def _joined_groups(
    stores: Sequence[Store], names: tuple[str, ...], reporter: Reporter
) -> ClassGroups:
    """Return the class groups that know all classes, and warn of others."""
    parts = [(store.class_names, store.dataset.class_groups) for store in stores]
    joined = join_groups(parts, names)
    lost = {key for _, groups in parts for key in groups} - joined.keys()
    if lost:
        reporter.warn(
            f"class groups {', '.join(f'`{key}`' for key in sorted(lost))} are left out: not every"
            " store has them for its classes"
        )
    return joined


def _gather(
    stores: Sequence[Store], rows: list[list[Row]], building: Path, reporter: Reporter
) -> tuple[int, int]:
    """Put the shards into the new store and their new names into the rows."""
    shards = [
        (number, shard)
        for number, taken in enumerate(rows)
        for shard in sorted({row.shard for row in taken if row.shard is not None})
    ]
    linked = 0
    renamed: dict[tuple[int, str], str] = {}
    with reporter.progress(shards, description="merging", unit="shard") as bar:
        for number, shard in bar:
            name = f"{SHARDS}/{len(renamed):05d}.safetensors"
            linked += _link(stores[number].path / shard, building / name)
            renamed[number, shard] = name
    sync(building / SHARDS)
    for number, taken in enumerate(rows):
        rows[number] = [
            row.model_copy(update={"shard": renamed[number, row.shard]}) if row.shard else row
            for row in taken
        ]
    return linked, len(shards) - linked


def _link(old: Path, new: Path) -> bool:
    """Make a hard link, or a copy where there can be none; return whether it is a link."""
    try:
        os.link(old.resolve(), new)
        return True
    except FileNotFoundError as error:
        raise DataError(
            f"the shard `{old}` is missing", "`tats store verify` lists what is damaged"
        ) from error
    except OSError:  # another file system, or one without links
        shutil.copyfile(old, new)
        sync(new)
        return False
