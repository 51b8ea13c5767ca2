"""Preparing again: what is kept, converted anew, added, refused or left to another part."""

import io
import itertools
import math
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tatscli.console import Reporter
from tatscli.errors import DataError, UsageError
from tatscli.lock import LOCK, locked
from tatscli.store import prepare as pipeline
from tatscli.store.convert import Converted
from tatscli.store.pool import Crash, Timeout, run_in_order
from tatscli.store.reader import Store
from tatscli.store.schema import Settings, read_rows, write_rows
from tatscli.store.sources import Source, Sources, find_sources
from tatscli.store.verify import verify
from tatscli.video.decode import Segment
from tests.clips import pan, render, static
from tests.store import stores as in_process
from tests.store.stores import QUIET, content
from tests.store.stores import prepare_with_workers as prepare

ONE = partial(run_in_order, workers=1)


def failing(number: int):
    """Return a runner under which every video that is tried fails as number so-and-so."""

    def run(work, groups):
        for job in itertools.chain.from_iterable(groups):
            yield job, Converted(reason=f"failed in run {number}")

    return run


def test_what_failed_is_tried_again_only_when_asked_or_replaced(tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "store"
    render(folder / "a.mp4", static(frames=2))
    (folder / "b.mp4").write_bytes(b"half")

    def reasons(number, **options):
        report = in_process.prepare(folder, out, run=failing(number), **options)
        return {row.id: row.reason for row in report.rows}

    assert reasons(1) == {"a.mp4": "failed in run 1", "b.mp4": "failed in run 1"}
    assert reasons(2) == reasons(1)
    assert set(reasons(3, retry_failed=True).values()) == {"failed in run 3"}
    (folder / "b.mp4").write_bytes(b"the whole")
    assert reasons(4) == {"a.mp4": "failed in run 3", "b.mp4": "failed in run 4"}
    (report,) = [in_process.prepare(folder, out, retry_failed=True)]
    assert {row.id: row.status for row in report.rows} == {"a.mp4": "ok", "b.mp4": "failed"}


def test_a_file_that_has_changed_is_converted_again(tmp_path):
    folder, out, stderr = tmp_path / "videos", tmp_path / "store", io.StringIO()
    for index, name in enumerate("abc"):
        render(folder / f"{name}.mp4", pan(frames=4, height=64, width=64, seed=index))
    in_process.prepare(folder, out)
    before = in_process.tensors_of(out)
    render(folder / "b.mp4", pan(frames=9, height=64, width=64))
    run = in_process.Counting()
    in_process.prepare(folder, out, run=run, reporter=Reporter(stderr=stderr))
    assert run.tried == ["b.mp4"]
    assert "warning: 1 of the sources changed since" in stderr.getvalue()
    after, rows = in_process.tensors_of(out), in_process.rows_of(out)
    assert (rows["b.mp4"].frames, len(after["b.mp4"]["times"])) == (9, 9)
    assert len(before["b.mp4"]["times"]) == 4
    for name in ("a.mp4", "c.mp4"):
        assert all(np.array_equal(before[name][kind], after[name][kind]) for kind in before[name])
    Store.open(out)


def test_a_segment_with_other_times_is_converted_again(tmp_path):
    path, out = tmp_path / "videos" / "a.mp4", tmp_path / "store"
    render(path, static(frames=40, height=64, width=64), fps=10)

    def made(*segments):
        items = [
            Source(f"a.mp4#{number}", path, segment=segment)
            for number, segment in enumerate(segments)
        ]
        run = in_process.Counting()
        in_process.prepare(Sources(path.parent, items), out, run=run)
        return [row.frames for row in in_process.rows_of(out).values()], len(run.tried)

    late, bad = Segment(2.0, 3.0), Segment(90.0, 95.0)
    assert made(Segment(0.0, 1.0), late, bad) == ([10, 10, 0], 3)
    assert made(Segment(0.0, 1.0), late, bad) == ([10, 10, 0], 0)
    assert made(Segment(0.0, 1.5), late, bad) == ([15, 10, 0], 1)
    assert made(Segment(0.0, 1.5), late, Segment(1.0, 1.2)) == ([15, 10, 2], 1)
    rows = in_process.rows_of(out)
    assert {row.path for row in rows.values()} == {"a.mp4"}
    assert (rows["a.mp4#1"].start, rows["a.mp4#1"].end) == (2.0, 3.0)


def test_a_shard_of_nothing_but_old_data_goes(tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "store"
    render(folder / "a.mp4", static(frames=2))
    in_process.prepare(folder, out)
    render(folder / "a.mp4", static(frames=7))
    in_process.prepare(folder, out)
    in_process.prepare(folder, out)
    assert len(in_process.tensors_of(out)["a.mp4"]["times"]) == 7
    assert len(list((out / "shards").iterdir())) == 1


@pytest.fixture
def two_folders(tmp_path):
    """Videos of three classes in two folders that have one class in common."""
    for folder, classes in (("one", ("fall", "walk")), ("two", ("jump", "walk"))):
        for index, name in enumerate(classes):
            path = tmp_path / folder / name / f"{folder}.mp4"
            render(path, static(frames=2, height=64, width=64, seed=index))
    return tmp_path / "one", tmp_path / "two"


def test_adding_keeps_what_is_there_and_joins_classes_by_name(two_folders, tmp_path):
    one, two = two_folders
    out = tmp_path / "store"
    in_process.prepare(one, out)
    with pytest.raises(UsageError, match="begun with 2 classes") as raised:
        in_process.prepare(two, out)
    assert "--add" in raised.value.hint
    in_process.prepare(two, out, add=True)
    store = Store.open(out)
    assert store.class_names == ["fall", "walk", "jump"]
    named = {row.id: store.class_names[row.label] for row in store.rows}
    assert named == {
        "fall/one.mp4": "fall",
        "jump/two.mp4": "jump",
        "walk/one.mp4": "walk",
        "walk/two.mp4": "walk",
    }
    assert store.dataset.counts.ok == 4 and len(in_process.tensors_of(out)) == 4
    before = in_process.content(out)
    in_process.prepare(two, out, add=True)
    assert in_process.content(out) == before


def test_without_add_a_vanished_source_is_refused(two_folders, tmp_path):
    one, _ = two_folders
    out = tmp_path / "store"
    in_process.prepare(one, out)
    for path in one.rglob("*.mp4"):
        path.rename(path.with_name("other.mp4"))
    with pytest.raises(UsageError, match=r"`fall/one\.mp4`, which is no longer among") as raised:
        in_process.prepare(one, out)
    assert "--add" in raised.value.hint
    assert Store.open(out).dataset.counts.ok == 2


def test_adding_another_file_under_a_known_name_is_refused(tmp_path):
    out = tmp_path / "store"
    for index, folder in enumerate(("one", "two")):
        render(tmp_path / folder / "a.mp4", static(frames=2 + index))
    in_process.prepare(tmp_path / "one", out)
    before = in_process.content(out)
    with pytest.raises(DataError, match=r"`a\.mp4` is already in `.*`, from a file of \d+ bytes"):
        in_process.prepare(tmp_path / "two", out, add=True)
    assert in_process.content(out) == before


def test_the_parts_of_the_sources_are_disjoint_and_complete(videos, tmp_path):
    sources = find_sources(videos)
    parts = [[one.id for one in pipeline.part_of(sources, (n, 3)).items] for n in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == [one.id for one in sources.items]
    fewer = replace(sources, items=sources.items[:3])  # files added later change nothing
    assert all(
        set(one.id for one in pipeline.part_of(fewer, (n, 3)).items) <= set(parts[n - 1])
        for n in (1, 2, 3)
    )


def test_a_part_is_recorded_and_stays_what_it_is(videos, tmp_path):
    out = tmp_path / "store"
    report = in_process.prepare(videos, out, part=(2, 3))
    assert Store.open(out).dataset.part == "2/3"
    assert len(report.rows) == len(pipeline.part_of(find_sources(videos), (2, 3)).items)
    for part, now in (((1, 3), "with `--part 1/3`"), (None, "whole")):
        with pytest.raises(UsageError, match=f"begun with `--part 2/3`, not {now}"):
            in_process.prepare(videos, out, part=part)


def test_a_part_may_have_nothing_to_do(tmp_path):
    render(tmp_path / "videos" / "a.mp4", static(frames=2))
    counts = [
        in_process.prepare(tmp_path / "videos", tmp_path / str(n), part=(n, 4)).counts.ok
        for n in (1, 2, 3, 4)
    ]
    assert sorted(counts) == [0, 0, 0, 1]


def test_late_and_crashed_videos_are_rows_and_leave_no_files(videos, tmp_path):
    def run(work, groups):
        for number, (job,) in enumerate(groups):
            if number in (1, 2):
                job.spool.with_suffix(".jpeg").write_bytes(b"half")
                yield job, Timeout(60) if number == 1 else Crash(-11)
                assert not list(job.spool.parent.glob(f"{job.spool.name}.*"))
            else:
                yield job, *work([job])

    report = in_process.prepare(videos, tmp_path / "store", run=run)
    reasons = [row.reason for row in report.failures]
    assert reasons[:2] == [
        "timeout: not finished after 60 s",
        "crashed: its worker was killed by SIGSEGV",
    ]
    assert report.failures[0].bytes == (videos / report.failures[0].id).stat().st_size


def test_a_store_in_use_is_left_alone(videos, tmp_path):
    out = tmp_path / "store"
    in_process.prepare(videos, out)
    before = in_process.content(out)
    with locked(out / LOCK, out, QUIET):
        for options in ({}, {"overwrite": True}, {"add": True}):
            with pytest.raises(DataError, match=f"in use by process {os.getpid()} on"):
                in_process.prepare(videos, out, **options)
    assert in_process.content(out) == before


@pytest.mark.parametrize("left", [[".lock"], [".lock", ".dataset.json.part"]])
def test_a_run_that_was_killed_at_once_is_continued(videos, undisturbed, tmp_path, left):
    out = tmp_path / "store"
    out.mkdir()
    for name in left:
        (out / name).write_bytes(b"{")
    prepare(videos, out, shard_bytes=30_000)
    assert content(out) == content(undisturbed)


def test_rows_of_a_shard_count_only_together(videos, undisturbed, tmp_path):
    """A kill, or a full disk, may have let only some of the last shard's rows through."""
    out = tmp_path / "store"
    prepare(videos, out, shard_bytes=30_000)
    rows = read_rows(out / "manifest.jsonl")
    last = max(row.shard for row in rows if row.shard)
    doomed = [row.id for row in rows if row.shard == last]
    assert len(doomed) > 1
    write_rows(out / "manifest.jsonl", [row for row in rows if row.id != doomed[-1]])
    dataset = (out / "dataset.json").read_text().replace('"complete": true', '"complete": false')
    (out / "dataset.json").write_text(dataset)
    prepare(videos, out, shard_bytes=30_000)
    assert content(out) == content(undisturbed)


def test_overwriting_deletes_only_what_is_of_the_store(videos, tmp_path):
    out = tmp_path / "store"
    in_process.prepare(videos, out)
    (out / "notes.txt").write_text("mine")
    in_process.prepare(videos, out, settings=Settings(short_side=32), overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert {row.height for row in Store.open(out).rows if row.status == "ok"} == {32}


def test_a_store_may_hold_motion_only(videos, undisturbed, tmp_path):
    out = tmp_path / "store"
    in_process.prepare(
        videos,
        out,
        settings=Settings(short_side=48, frames="none"),
    )
    store, full = Store.open(out), Store.open(undisturbed)
    for index in store.part(None):
        frames = range(store.rows[index].frames)
        motion, valid = store.motion(index, frames)
        expected, known = full.motion(index, frames)
        assert np.array_equal(motion, expected) and np.array_equal(valid, known)
        assert np.array_equal(store.times(index), full.times(index))
        with pytest.raises(DataError, match="prepared with `--frames none`"):
            store.jpegs(index, [0])
    assert {kind for held in in_process.tensors_of(out).values() for kind in held} == {
        "times",
        "motion",
        "valid",
    }
    assert verify(store, reporter=QUIET, decode=True).findings == []


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_row_that_could_not_be_read_again_is_a_failure(tmp_path, value):
    folder, out = tmp_path / "videos", tmp_path / "store"
    for name in "ab":
        render(folder / f"{name}.mp4", static(frames=2))

    def run(work, groups):
        for job, result in in_process.here(work, groups):
            if job.path.name == "a.mp4":
                result.facts["duration"] = value
            yield job, result
            assert not list(job.spool.parent.glob("0.*"))

    in_process.prepare(folder, out, run=run)
    rows = in_process.rows_of(out)
    assert rows["a.mp4"].reason == "wrong header or timestamps: no finite duration"
    assert list(in_process.tensors_of(out)) == ["b.mp4"]
