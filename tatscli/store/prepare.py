"""`prepare`: videos in, a store out, resumable; `check`: only see what decodes.

Videos are converted side by side but collected in the order of their ids, so a store does not
depend on the number of workers, nor on where a run was killed: shards end at the same videos, and a
row is written only when its shard is safe.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tatscli.console import Reporter
from tatscli.errors import DataError
from tatscli.store.convert import Converted, Job, convert
from tatscli.store.pool import Crash, run_in_order
from tatscli.store.resume import begin
from tatscli.store.schema import (
    MANIFEST,
    SHARDS,
    Counts,
    Dataset,
    Row,
    Settings,
    append_rows,
    read_rows,
    write_dataset,
    write_rows,
)
from tatscli.store.shards import Spool, write_shard
from tatscli.store.sources import Source, Sources

SHARD_BYTES = 256 << 20
_AHEAD = 16  # jobs for each worker that may be done before their turn; their frames wait on disk


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all sources.

    Attributes:
        rows: One for each source, sorted by id.
        seconds: What this run took.
    """

    rows: list[Row]
    seconds: float

    @property
    def counts(self) -> Counts:
        return Counts.of(self.rows)

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.status == "failed"]

    @property
    def warnings(self) -> list[Row]:
        return [row for row in self.rows if row.warning is not None]


def prepare(
    sources: Sources,
    out: Path,
    settings: Settings,
    *,
    workers: int,
    reporter: Reporter,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Convert sources into a store.

    Args:
        sources: What to convert.
        out: The store's folder: new, empty, or an earlier run's, which is continued.
        settings: How to convert.
        workers: Number of processes.
        reporter: Speaks to the user.
        overwrite: Delete an existing store first.
        shard_bytes: A shard is closed once it holds this much.

    Raises:
        UsageError: The folder holds something else, or a store with other settings or sources.
        DataError: The store cannot be written.
    """
    start = time.monotonic()
    try:
        kept = begin(out, sources, settings, overwrite=overwrite)
        if kept:
            reporter.info(f"continuing `{out}`: {len(kept)} of {len(sources.items)} are done")
        rest = [source for source in sources.items if source.id not in kept]
        if rest:
            _fill(out, rest, settings, workers, reporter, shard_bytes)
        rows = sorted(read_rows(out / MANIFEST), key=lambda row: row.id)
        write_rows(out / MANIFEST, rows)
        write_dataset(
            out,
            Dataset(
                complete=True,
                settings=settings,
                class_names=tuple(sources.class_names),
                counts=Counts.of(rows),
            ),
        )
    except KeyboardInterrupt:
        reporter.warn(f"`{out}` is unfinished; the same command continues it")
        raise
    except OSError as error:
        raise DataError(
            f"cannot write `{error.filename or out}`: {error.strerror}",
            "finished shards are kept: make room and run the same command again",
        ) from error
    return Report(rows, time.monotonic() - start)


def check(sources: Sources, *, workers: int, reporter: Reporter) -> Report:
    """Decode every source to its end and write nothing."""
    start = time.monotonic()
    jobs = (Job(source.path, None, Settings()) for source in sources.items)
    with closing(_results(sources.items, jobs, workers, reporter, "checking")) as results:
        rows = [_row(source, result) for source, result in results]
    return Report(rows, time.monotonic() - start)


def _fill(
    out: Path,
    sources: Sequence[Source],
    settings: Settings,
    workers: int,
    reporter: Reporter,
    shard_bytes: int,
) -> None:
    """Convert sources, closing shards as they fill up."""
    spools = Path(tempfile.mkdtemp(prefix=".spool-", dir=out))
    try:
        jobs = (
            Job(source.path, spools / str(number), settings)
            for number, source in enumerate(sources)
        )
        rows: list[Row] = []
        waiting: list[tuple[str, Spool]] = []
        with closing(_results(sources, jobs, workers, reporter, "preparing")) as results:
            for source, result in results:
                row = _row(source, result)
                rows.append(row)
                if isinstance(result, Converted) and result.spool is not None:
                    waiting.append((row.id, result.spool))
                if sum(spool.size for _, spool in waiting) >= shard_bytes:
                    _close_shard(out, rows, waiting)
                    rows, waiting = [], []
        _close_shard(out, rows, waiting)
    finally:
        shutil.rmtree(spools, ignore_errors=True)


def _close_shard(out: Path, rows: list[Row], videos: list[tuple[str, Spool]]) -> None:
    """Write the waiting videos as the next shard, and only then their rows."""
    if videos:
        taken = [int(path.stem) for path in (out / SHARDS).glob("[0-9]*.safetensors")]
        name = f"{SHARDS}/{max(taken, default=-1) + 1:05d}.safetensors"
        write_shard(out / name, videos)
        rows = [
            row if row.status == "failed" else row.model_copy(update={"shard": name})
            for row in rows
        ]
    append_rows(out / MANIFEST, rows)
    for _, spool in videos:
        spool.remove()


def _results(
    sources: Sequence[Source],
    jobs: Iterable[Job],
    workers: int,
    reporter: Reporter,
    description: str,
) -> Generator[tuple[Source, Converted | Crash], None, None]:
    """Run jobs behind a progress bar that also counts failures; closing it ends the workers."""
    workers = min(workers, len(sources))
    failed = 0
    running = run_in_order(convert, jobs, workers=workers, ahead=_AHEAD * workers)
    bar = reporter.progress(total=len(sources), description=description, unit="video")
    with closing(running) as results, bar:
        for source, (_, result) in zip(sources, results, strict=True):
            if isinstance(result, Crash) or result.reason is not None:
                failed += 1
                bar.set_postfix(failed=failed, refresh=False)
            elif result.trouble is not None:
                raise DataError(
                    result.trouble, "finished shards are kept: run the same command again"
                )
            yield source, result
            bar.update()


def _row(source: Source, result: Converted | Crash) -> Row:
    if isinstance(result, Crash):
        outcome = {"status": "failed", "reason": str(result)}
    elif result.reason is not None:
        outcome = {"status": "failed", "reason": result.reason}
    else:
        outcome = {"status": "ok", **(result.facts or {})}
    known = {"label": source.label, "split": source.split, "also_in": source.also_in}
    return Row.model_validate({"id": source.id, **known, **outcome})
