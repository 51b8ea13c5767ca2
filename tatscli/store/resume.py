"""How a run of `prepare` begins: in a new folder, or with what an earlier run has finished."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ValidationError

from tatscli.errors import DataError, UsageError
from tatscli.store.schema import (
    DATASET,
    FORMAT_VERSION,
    MANIFEST,
    SHARDS,
    Dataset,
    Row,
    Settings,
    read_rows,
    write_dataset,
    write_rows,
)
from tatscli.store.sources import Sources

_OTHER = "give another `--out`, or `--overwrite` to delete this store and start anew"


def begin(out: Path, sources: Sources, settings: Settings, *, overwrite: bool) -> dict[str, Row]:
    """Make the store ready to be filled and return what need not be done again, by id.

    Failed sources are tried again. Labels and splits are taken from the present lists. Shards and
    temporary files that a killed run left without a row are removed.

    Raises:
        UsageError: The folder holds something else, or a store with other settings or sources.
        DataError: The store is damaged.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"`{out}` is a file", "give a folder for the store")
    if (out / DATASET).is_file() and overwrite:
        shutil.rmtree(out)
    elif (out / DATASET).is_file():
        kept = _kept_rows(out, sources, settings)
        _clean(out, kept)
        write_dataset(out, Dataset(settings=settings, class_names=tuple(sources.class_names)))
        write_rows(out / MANIFEST, kept.values())
        return kept
    elif out.is_dir() and any(out.iterdir()):
        raise UsageError(f"`{out}` is not empty and not a store", "give a new or empty folder")
    (out / SHARDS).mkdir(parents=True, exist_ok=True)
    write_dataset(out, Dataset(settings=settings, class_names=tuple(sources.class_names)))
    write_rows(out / MANIFEST, [])
    return {}


def _kept_rows(out: Path, sources: Sources, settings: Settings) -> dict[str, Row]:
    """Return the finished rows of a store, if it has the same sources and settings."""
    try:
        dataset = Dataset.model_validate_json((out / DATASET).read_bytes())
        rows = read_rows(out / MANIFEST)
    except ValidationError as error:
        raise DataError(f"the store `{out}` is damaged: {error}", _OTHER) from error
    if dataset.format_version != FORMAT_VERSION:
        raise UsageError(f"`{out}` has store format `{dataset.format_version}`", _OTHER)
    for name in Settings.model_fields:
        old, new = getattr(dataset.settings, name), getattr(settings, name)
        if old != new:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"`{out}` was begun with `{option} {old}`, not `{new}`", _OTHER)
    if dataset.class_names != tuple(sources.class_names):
        raise UsageError(
            f"`{out}` was begun with {len(dataset.class_names)} classes, now there are"
            f" {len(sources.class_names)} or other ones",
            _OTHER,
        )
    current = {source.id: source for source in sources.items}
    kept: dict[str, Row] = {}
    for row in rows:
        source = current.get(row.id)
        if source is None:
            raise UsageError(
                f"`{out}` holds `{row.id}`, which is not among the sources any more", _OTHER
            )
        if row.status == "ok":
            known = {"label": source.label, "split": source.split, "also_in": source.also_in}
            kept[row.id] = row.model_copy(update=known)
    return kept


def _clean(out: Path, kept: dict[str, Row]) -> None:
    """Remove what belongs to no row: unfinished files, and a shard that came before its rows."""
    named = {row.shard for row in kept.values()}
    for path in (out / SHARDS).iterdir():
        if f"{SHARDS}/{path.name}" not in named:
            path.unlink()
    for path in out.glob(".spool-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in out.glob(".*.part"):
        path.unlink()
