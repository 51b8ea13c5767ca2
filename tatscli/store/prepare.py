"""`prepare` converts videos into a store and can be resumed; `check` only decodes them.

Videos are converted in parallel but collected in the order of their ids, segments of a video in the
order of their starts. So a store does not depend on the number of workers or on where a run was
killed: shards end at the same videos, and a row is written only once its shard is on disk.
"""

from __future__ import annotations

import errno
import math
import shutil
import tempfile
import time
import zlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from tatscli.console import Reporter
from tatscli.errors import DataError
from tatscli.lock import LOCK, locked
from tatscli.store.convert import Converted, Job, convert_together
from tatscli.store.holdout import Holdout, split_sources
from tatscli.store.passes import in_passes
from tatscli.store.pool import Crash, Runner, Timeout
from tatscli.store.resume import Start, begin, claim, size_of
from tatscli.store.schema import (
    MANIFEST,
    SHARDS,
    Counts,
    Row,
    Settings,
    append_rows,
    read_rows,
    write_dataset,
    write_rows,
)
from tatscli.store.shards import Spool, write_shard
from tatscli.store.sources import Source, Sources
from tatscli.video.decode import Limits

SHARD_BYTES = 256 << 20
LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run.

    Attributes:
        rows: One for each source, sorted by id.
        seconds: Duration of this run.
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
    run: Runner[Job, Converted],
    reporter: Reporter,
    limits: Limits = LIMITS,
    overwrite: bool = False,
    retry_failed: bool = False,
    add: bool = False,
    part: tuple[int, int] | None = None,
    holdout: Holdout | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Convert sources into a store.

    Args:
        sources: What to convert.
        out: The store's folder: new, empty, or that of an earlier run, which is continued.
        settings: How to convert.
        run: Runs the jobs, here or elsewhere.
        reporter: Receives messages and progress.
        limits: What is refused.
        overwrite: Delete an existing store first.
        retry_failed: Convert again what failed in an earlier run.
        add: Keep the rows of an existing store that are not among the sources.
        part: (I, N): convert only the I-th of N parts of the sources, counted from 1.
        holdout: Divide videos without a split into `train` and `val`.
        shard_bytes: A shard is closed once it holds this much.

    Raises:
        UsageError: The folder holds something else, or a store with other settings or sources.
        DataError: The store cannot be written, is in use, or is damaged.
    """
    begun = time.monotonic()
    if holdout is not None:  # of all videos: every part divides them alike
        sources = split_sources(sources, holdout)
        reporter.info(sources.findings[-1])
    if part is not None:
        sources = part_of(sources, part)
    try:
        claim(out)
        with locked(out / LOCK, out, reporter):
            start = begin(
                out,
                sources,
                settings,
                part="{}/{}".format(*part) if part else None,
                overwrite=overwrite,
                retry_failed=retry_failed,
                add=add,
                holdout=holdout,
            )
            _tell(start, out, reporter)
            if start.rest:
                _fill(out, start.rest, settings, limits, run, reporter, shard_bytes)
            rows = sorted(read_rows(out / MANIFEST), key=lambda row: row.id)
            write_rows(out / MANIFEST, rows)
            finished = {"complete": True, "counts": Counts.of(rows)}
            write_dataset(out, start.dataset.model_copy(update=finished))
    except KeyboardInterrupt:
        reporter.warn(f"`{out}` is unfinished; rerun the same command to continue")
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DataError(
            f"cannot write `{error.filename or out}`: {error.strerror}",
            f"{'free some space' if full else 'fix this'}, then rerun the same command; what is"
            " finished is kept",
        ) from error
    return Report(rows, time.monotonic() - begun)


def check(
    sources: Sources,
    *,
    run: Runner[Job, Converted],
    reporter: Reporter,
    limits: Limits = LIMITS,
    part: tuple[int, int] | None = None,
) -> Report:
    """Decode every source, or those of a part, to its end and write nothing."""
    begun = time.monotonic()
    if part is not None:
        sources = part_of(sources, part)
    passes = in_passes(sources.items)
    groups = (
        [Job(source.path, None, Settings(), source.segment, limits) for source in one]
        for one in passes
    )
    items = [source for one in passes for source in one]
    with closing(_results(items, groups, run, reporter, "checking")) as results:
        rows = [_row(source, result) for source, _, result in results]
    return Report(sorted(rows, key=lambda row: row.id), time.monotonic() - begun)


def part_of(sources: Sources, part: tuple[int, int]) -> Sources:
    """Return the I-th of N parts of some sources.

    Where a source belongs depends on its file's name alone: so a part stays the same when files are
    added, and the segments of a video are in one part, which reads it once.
    """
    number, parts = part
    mine = [one for one in sources.items if zlib.crc32(one.file.encode()) % parts == number - 1]
    return replace(sources, items=mine)


def _tell(start: Start, out: Path, reporter: Reporter) -> None:
    """Report how an earlier run is continued."""
    if start.changed:
        reporter.warn(
            f"{len(start.changed)} of the sources changed since they were prepared, such as"
            f" `{start.changed[0]}`; they are converted again"
        )
    if start.kept:
        done = f"{len(start.kept)} of {len(start.kept) + len(start.rest)} are done"
        reporter.info(f"continuing `{out}`: {done}")
    failed = sum(row.status == "failed" for row in start.kept.values())
    if failed:
        reporter.info(f"{failed} of these failed; `--retry-failed` retries them")


def _fill(
    out: Path,
    sources: Sequence[Source],
    settings: Settings,
    limits: Limits,
    run: Runner[Job, Converted],
    reporter: Reporter,
    shard_bytes: int,
) -> None:
    """Convert sources and write shards as they fill up."""
    spools = Path(tempfile.mkdtemp(prefix=".spool-", dir=out))
    try:
        passes, number = in_passes(sources), count()
        groups = (
            [
                Job(source.path, spools / str(next(number)), settings, source.segment, limits)
                for source in one
            ]
            for one in passes
        )
        items = [source for one in passes for source in one]
        rows: list[Row] = []
        waiting: list[tuple[str, Spool]] = []
        size = 0
        with closing(_results(items, groups, run, reporter, "preparing")) as results:
            for source, job, result in results:
                row = _row(source, result)
                rows.append(row)
                if not isinstance(result, Converted):  # its worker could not clean up
                    assert job.spool is not None
                    for path in spools.glob(f"{job.spool.name}.*"):
                        path.unlink()
                elif result.spool is not None and row.status == "ok":
                    waiting.append((row.id, result.spool))
                    size += result.spool.size
                elif result.spool is not None:
                    result.spool.remove()
                if size >= shard_bytes:
                    _close_shard(out, rows, waiting)
                    rows, waiting, size = [], [], 0
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
    groups: Iterable[Sequence[Job]],
    run: Runner[Job, Converted],
    reporter: Reporter,
    description: str,
) -> Generator[tuple[Source, Job, Converted | Crash | Timeout], None, None]:
    """Run jobs behind a progress bar that also counts failures; closing it ends the workers."""
    failed = 0
    bar = reporter.progress(total=len(sources), description=description, unit="video")
    with closing(run(convert_together, groups)) as results, bar:
        for source, (job, result) in zip(sources, results, strict=True):
            if not isinstance(result, Converted) or result.reason is not None:
                failed += 1
                bar.set_postfix(failed=failed, refresh=False)
            elif result.trouble is not None:
                raise DataError(
                    result.trouble,
                    "fix this, then rerun the same command; what is finished is kept",
                )
            yield source, job, result
            bar.update()


def _row(source: Source, result: Converted | Crash | Timeout) -> Row:
    known: dict[str, object] = {
        "id": source.id,
        "label": source.label,
        "split": source.split,
        "also_in": source.also_in,
    }
    if source.segment is not None:
        known["path"] = source.file
        if source.segment.unit == "seconds":
            known |= {"start": source.segment.start, "end": source.segment.end}
    facts = (isinstance(result, Converted) and result.facts) or {}
    reason = result.reason if isinstance(result, Converted) else str(result)
    if reason is None:
        wrong = [
            name
            for name, value in facts.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if not wrong:
            return Row.model_validate({**known, "status": "ok", **facts})
        reason = f"wrong header or timestamps: no finite {', '.join(wrong)}"
        facts = {}
    # By its size a later run knows whether this is still the file that failed.
    outcome = {"status": "failed", "reason": reason, "bytes": size_of(source.path) or 0}
    return Row.model_validate({**known, **facts, **outcome})
