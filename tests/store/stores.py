"""Stores for tests, made in this process by jobs of one line."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tatscli.console import Reporter
from tatscli.store import prepare as pipeline
from tatscli.store.convert import Converted, Job
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Row, Settings, read_rows
from tatscli.store.sources import Sources, find_sources

QUIET = Reporter(quiet=True)
SETTINGS = Settings(short_side=48)
SHARD_BYTES = 20_000


def here(
    work: Callable[[Sequence[Job]], Iterable[Converted]], groups: Iterable[Sequence[Job]]
) -> Generator[tuple[Job, Converted], None, None]:
    """Run groups of jobs in this process: a runner without its second's start."""
    for jobs in groups:
        yield from zip(jobs, work(jobs), strict=True)


class Counting:
    """A runner that remembers which files were tried."""

    def __init__(self):
        self.tried = []

    def __call__(self, work, groups):
        groups = list(groups)
        self.tried += [job.path.name for jobs in groups for job in jobs]
        return here(work, groups)


def prepare(videos: Path | Sources, out: Path, **options: Any) -> pipeline.Report:
    """Prepare a folder or sources with small pictures and small shards."""
    sources = videos if isinstance(videos, Sources) else find_sources(videos)
    defaults = {"run": here, "reporter": QUIET, "shard_bytes": SHARD_BYTES}
    settings = options.pop("settings", SETTINGS)
    return pipeline.prepare(sources, out, settings, **{**defaults, **options})


def prepare_with_workers(
    videos: Path, out: Path, *, workers: int = 2, settings: Settings = SETTINGS, **options: Any
) -> pipeline.Report:
    """Prepare a folder in processes, as the command line does."""
    run = partial(run_in_order, workers=workers)
    return pipeline.prepare(find_sources(videos), out, settings, run=run, reporter=QUIET, **options)


def content(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows_of(store: Path) -> dict[str, Row]:
    """Return the rows of a manifest by id; none may be there twice."""
    rows = read_rows(store / "manifest.jsonl")
    assert [row.id for row in rows] == sorted({row.id for row in rows})
    return {row.id: row for row in rows}


def tensors_of(store: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the tensors of every ok row, and see to it that there are no further files."""
    rows = rows_of(store)
    shards = {row.shard for row in rows.values() if row.shard}
    found = {f"shards/{path.name}" for path in (store / "shards").iterdir()}
    assert found == shards
    assert {path.name for path in store.iterdir()} == {"dataset.json", "manifest.jsonl", "shards"}
    loaded = {shard: load_file(store / shard) for shard in shards}
    return {
        row.id: {
            kind: loaded[row.shard][f"{row.id}/{kind}"]
            for kind in ("times", "offsets", "motion", "jpeg", "valid")
            if f"{row.id}/{kind}" in loaded[row.shard]
        }
        for row in rows.values()
        if row.shard is not None
    }


def assert_same_videos(one: Path, other: Path) -> None:
    """Compare two stores row by row and tensor by tensor, wherever these lie."""
    rows, others = rows_of(one), rows_of(other)
    assert list(rows) == list(others)
    for name, row in rows.items():
        assert row.model_copy(update={"shard": None}) == others[name].model_copy(
            update={"shard": None}
        )
    tensors, other_tensors = tensors_of(one), tensors_of(other)
    assert tensors.keys() == other_tensors.keys()
    for name, held in tensors.items():
        assert held.keys() == other_tensors[name].keys()
        for kind, tensor in held.items():
            assert tensor.dtype == other_tensors[name][kind].dtype
            assert np.array_equal(tensor, other_tensors[name][kind]), (name, kind)
