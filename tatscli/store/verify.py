"""Checking a store byte by byte, and dropping what is broken for the next `tats prepare`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tatscli.console import Reporter
from tatscli.errors import DataError, DecodeError
from tatscli.lock import LOCK, locked
from tatscli.store.reader import Store
from tatscli.store.resume import clean
from tatscli.store.schema import (
    MANIFEST,
    SHARDS,
    Counts,
    Row,
    Settings,
    write_dataset,
    write_rows,
)
from tatscli.store.shards import Shard
from tatscli.video.field import grid_size


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem.

    Attributes:
        problem: What is wrong.
        id: The video concerned.
        shard: The shard concerned.
    """

    problem: str
    id: str | None = None
    shard: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    Attributes:
        findings: What is wrong, sorted by id.
        notes: What is worth knowing but not wrong.
        videos: Number of videos checked.
        bytes: Size of their shards.
        seconds: Duration.
    """

    findings: list[Finding]
    notes: list[str]
    videos: int
    bytes: int
    seconds: float


def verify(
    store: Store, *, reporter: Reporter, workers: int | None = None, decode: bool = False
) -> Verdict:
    """Check that every row has its data and that every byte is as it was written.

    Args:
        store: A finished store.
        reporter: Shows progress.
        workers: Shards read at the same time; 4 more than cores if None.
        decode: Also decode the first and last frame of every video.
    """
    begun = time.monotonic()
    findings = list(_of_the_manifest(store))
    by_shard: dict[str, list[Row]] = {}
    for row in store.rows:
        if row.shard is not None:
            by_shard.setdefault(row.shard, []).append(row)
    present = {f"{SHARDS}/{path.name}" for path in (store.path / SHARDS).glob("*")}
    findings += [
        Finding("no row names this file", shard=name) for name in sorted(present - set(by_shard))
    ]
    videos = sum(map(len, by_shard.values()))
    dead = 0

    def look(item: tuple[str, list[Row]]) -> tuple[int, list[Finding], int]:
        name, rows = item
        found, unnamed = _of_a_shard(store, name, rows, decode=decode)
        return len(rows), found, unnamed

    bar = reporter.progress(total=videos, description="verifying", unit="video")
    with bar, ThreadPoolExecutor(workers) as threads:  # reading and hashing leave Python's lock
        try:
            for count, found, unnamed in threads.map(look, sorted(by_shard.items())):
                findings += found
                dead += unnamed
                bar.update(count)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    notes = []
    blank = sum(row.status == "ok" and row.checksum is None for row in store.rows)
    if blank:
        notes.append(f"{blank} rows have no checksum: only the shape of their data was checked")
    if dead:
        notes.append(
            f"{dead} bytes in shards belong to no row: old data of sources converted again"
        )
    size = sum((store.path / name).stat().st_size for name in by_shard if name in present)
    findings.sort(key=lambda finding: (finding.id or "", finding.shard or "", finding.problem))
    return Verdict(findings, notes, videos, size, time.monotonic() - begun)


def repair(store: Store, verdict: Verdict, *, reporter: Reporter) -> int:
    """Drop the rows of broken videos, and files without a row; return how many rows were dropped.

    If any were dropped, the store is unfinished until `tats prepare` has converted them again.

    Raises:
        DataError: Another run uses the store, or has changed it since it was opened.
    """
    with locked(store.path / LOCK, store.path, reporter):
        present = Store.open(store.path)
        if (present.dataset, present.rows) != (store.dataset, store.rows):
            raise DataError(
                f"`{store.path}` has changed during the check", "run `tats store verify` again"
            )
        broken = {finding.id for finding in verdict.findings}
        kept = [row for row in store.rows if row.id not in broken]
        dropped = len(store.rows) - len(kept)
        update = {"complete": not dropped, "counts": Counts.of(kept) if not dropped else Counts()}
        write_dataset(store.path, store.dataset.model_copy(update=update))
        write_rows(store.path / MANIFEST, kept)
        clean(store.path, kept)
    return dropped


def _of_the_manifest(store: Store) -> Iterator[Finding]:
    for name, times in Counter(row.id for row in store.rows).items():
        if times > 1:
            yield Finding(f"appears in the manifest {times} times", id=name)
    for row in store.rows:
        if row.status == "ok" and row.shard is None:
            yield Finding("is ok, but has no shard", id=row.id)
        if row.label is not None and not 0 <= row.label < len(store.class_names):
            yield Finding(f"has label {row.label} of {len(store.class_names)} classes", id=row.id)
    if [row.id for row in store.rows] != sorted(row.id for row in store.rows):
        yield Finding("the manifest is not sorted by id")
    if Counts.of(store.rows) != store.dataset.counts:
        yield Finding("the counts in `dataset.json` do not match the manifest")


def _of_a_shard(
    store: Store, name: str, rows: Iterable[Row], *, decode: bool
) -> tuple[list[Finding], int]:
    """Return what is wrong with some videos of a shard, and how many of its bytes have no row."""
    try:
        shard = Shard(store.path / name)
    except (OSError, ValueError) as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)
        return [Finding(f"its shard cannot be read: {why}", row.id, name) for row in rows], 0
    findings = []
    for row in rows:
        try:
            problem = _of_a_video(shard, row, store.settings, decode=decode)
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        if problem is not None:
            findings.append(Finding(problem, row.id, name))
    named = {row.id for row in rows}
    dead = sum(
        tensor.size
        for video, tensors in shard.videos.items()
        if video not in named
        for tensor in tensors.values()
    )
    return findings, dead


def _of_a_video(shard: Shard, row: Row, settings: Settings, *, decode: bool) -> str | None:
    """Say what is wrong with a video; None if nothing is."""
    tensors = shard.videos.get(row.id, {})
    grid = grid_size(row.width, row.height, settings.motion_cell)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "times": ("F64", (row.frames,)),
        "motion": ("F16", (row.frames, *grid, 2)),
        "valid": ("BOOL", (row.frames,)),
    }
    pictures = settings.frames != "none"
    if pictures:
        expected["offsets"] = ("I64", (row.frames + 1,))
    for kind, (dtype, shape) in expected.items():
        tensor = tensors.get(kind)
        if tensor is None:
            return f"its shard has no `{kind}` for it"
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            return f"`{kind}` is {tensor.dtype} {tensor.shape}, not {dtype} {shape}"
    if pictures and "jpeg" not in tensors:
        return "its shard has no `jpeg` for it"
    if row.checksum is not None and shard.checksum(row.id) != row.checksum:
        return "its bytes have changed: the checksum does not match"
    if not pictures:
        return None
    offsets = shard.array(tensors["offsets"])
    if offsets[0] != 0 or offsets[-1] != tensors["jpeg"].size or (offsets[1:] < offsets[:-1]).any():
        return "`offsets` do not match `jpeg`"
    for frame in sorted({0, row.frames - 1}) if decode else ():
        jpeg = shard.array(tensors["jpeg"], int(offsets[frame]), int(offsets[frame + 1]))
        problem = _of_a_picture(jpeg.tobytes(), (row.width, row.height))
        if problem is not None:
            return f"frame {frame} {problem}"
    return None


def _of_a_picture(jpeg: bytes, size: tuple[int, int]) -> str | None:
    from tatscli.video.jpeg import jpeg_size

    try:
        found = jpeg_size(jpeg)
    except DecodeError as error:
        return error.message
    return None if found == size else "is {} x {}".format(*found)
