"""Preparing: what is in a store, that it is always the same, and that nothing finished is lost."""

import io
import itertools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tatscli.console import Reporter
from tatscli.errors import DataError, Exit, UsageError
from tatscli.store import prepare as pipeline
from tatscli.store.convert import Converted
from tatscli.store.lock import LOCK, locked
from tatscli.store.pool import Crash, Timeout, run_in_order
from tatscli.store.reader import Store
from tatscli.store.schema import Row, Settings, read_rows, write_rows
from tatscli.store.sources import Source, Sources, find_sources
from tatscli.store.verify import verify
from tatscli.video.decode import Segment
from tatscli.video.frames import read_frames
from tests.clips import CLEAN_VECTORS, pan, render, static
from tests.processes import hear_interrupts
from tests.store import stores as in_process

QUIET = Reporter(quiet=True)
ONE = partial(run_in_order, workers=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two classes, seven videos of different lengths, one of them noise."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(6):
        clip = pan((index, 1), frames=6 + index, height=64, width=96, seed=index)
        name = f"{'fall' if index % 2 else 'walk'}/clip {index}.mp4"
        render(folder / name, clip, options=CLEAN_VECTORS)
    (folder / "fall" / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    return folder


def prepare(videos, out, *, workers=2, settings=None, **options):
    return pipeline.prepare(
        find_sources(videos),
        out,
        settings or Settings(short_side=48),
        run=partial(run_in_order, workers=workers),
        reporter=QUIET,
        **options,
    )


def content(store: Path) -> dict[str, bytes]:
    files = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "undisturbed"
    prepare(videos, out, shard_bytes=30_000)
    return out


def test_a_store_holds_every_frame_time_and_vector(videos, undisturbed):
    store = Store.open(undisturbed)
    assert store.name == "undisturbed"
    assert (store.class_names, store.motion_cell) == (["fall", "walk"], 16)
    assert [row.id for row in store.rows] == sorted(row.id for row in store.rows)
    assert len(store.part(None)) == 6
    for index in store.part(None):
        row = store.rows[index]
        frames = list(read_frames(videos / row.id, short_side=48))
        everything = range(row.frames)
        assert row.label == ["fall", "walk"].index(row.id.split("/")[0])
        assert (row.frames, row.width, row.height) == (len(frames), 72, 48)
        assert [bytes(jpeg) for jpeg in store.jpegs(index, everything)] == [
            f.jpeg() for f in frames
        ]
        motion, valid = store.motion(index, everything)
        expected = np.stack([frame.motion for frame in frames]).astype(np.float16)
        assert np.array_equal(motion, expected.astype(np.float32)) and motion.dtype == np.float32
        assert valid.tolist() == [frame.valid for frame in frames]
        assert store.times(index).tolist() == [frame.time for frame in frames]
        assert (row.motion, row.moving, row.codec, row.fps) == ("native", sum(valid), "h264", 25)
        assert row.duration == pytest.approx(len(frames) / 25)


def test_some_frames_in_any_order(undisturbed):
    store = Store.open(undisturbed)
    index = store.part(None)[2]
    whole, (field, valid) = store.jpegs(index, range(6)), store.motion(index, range(6))
    some, (some_field, some_valid) = store.jpegs(index, [4, 0, 4]), store.motion(index, [4, 0, 4])
    assert [bytes(jpeg) for jpeg in some] == [bytes(whole[frame]) for frame in (4, 0, 4)]
    assert np.array_equal(some_field, field[[4, 0, 4]])
    assert np.array_equal(some_valid, valid[[4, 0, 4]])
    assert some[0].flags.writeable and some[0].dtype == np.uint8 and some[0].ndim == 1
    assert Image.open(io.BytesIO(bytes(some[0]))).size == (72, 48)
    for frame in (-1, 99):
        with pytest.raises(IndexError):
            store.jpegs(index, [frame])
        with pytest.raises(IndexError):
            store.motion(index, [frame])


def test_failures_are_rows_with_their_reason(undisturbed):
    store = Store.open(undisturbed)
    (failed,) = [index for index, row in enumerate(store.rows) if row.status == "failed"]
    assert store.rows[failed].id == "fall/noise.mp4"
    assert "does not open as a video" in store.rows[failed].reason
    assert failed not in store.part(None)
    with pytest.raises(DataError, match="has no frames in the store"):
        store.jpegs(failed, [0])


def test_shards_are_plain_safetensors_with_aligned_data(undisturbed):
    rows = {row.id: row for row in Store.open(undisturbed).rows if row.shard}
    names = sorted({row.shard for row in rows.values()})
    assert len(names) > 1
    assert names == [f"shards/{number:05d}.safetensors" for number in range(len(names))]
    for name in names:
        data = (undisturbed / name).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        starts = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        assert starts[0][0] == 0 and starts[-1][1] == len(data) - 8 - size
        assert all(one[1] == other[0] for one, other in itertools.pairwise(starts))
        width = {"F64": 8, "I64": 8, "F16": 2, "U8": 1, "BOOL": 1}
        for entry in header.values():
            assert (8 + size + entry["data_offsets"][0]) % width[entry["dtype"]] == 0
        for key, tensor in load_file(undisturbed / name).items():
            video, _, kind = key.rpartition("/")
            assert rows[video].shard == name
            assert len(tensor) >= rows[video].frames, kind


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(videos, undisturbed, tmp_path, workers):
    prepare(videos, tmp_path / "store", workers=workers, shard_bytes=30_000)
    assert content(tmp_path / "store") == content(undisturbed)
    assert Store.open(tmp_path / "store").fingerprint() == Store.open(undisturbed).fingerprint()


class Counting:
    """A runner that remembers which files were tried."""

    def __init__(self):
        self.tried = []

    def __call__(self, work, jobs):
        jobs = list(jobs)
        self.tried += [job.path.name for job in jobs]
        return run_in_order(work, jobs, workers=2)


def test_a_second_run_does_nothing_again(videos, undisturbed):
    before, run, stderr = content(undisturbed), Counting(), io.StringIO()
    for options, tried in (({}, []), ({"retry_failed": True}, ["noise.mp4"])):
        report = pipeline.prepare(
            find_sources(videos),
            undisturbed,
            Settings(short_side=48),
            run=run,
            reporter=Reporter(stderr=stderr),
            shard_bytes=30_000,
            **options,
        )
        assert run.tried == tried
        assert (report.counts.ok, report.counts.failed) == (6, 1)
        assert content(undisturbed) == before
    assert "7 of 7 are done\nof these 1 failed; `--retry-failed` tries them" in stderr.getvalue()


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from tatscli.console import Reporter
from tatscli.store import prepare as pipeline
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings
from tatscli.store.sources import Source, Sources, find_sources

if __name__ == "__main__":
    print("started", flush=True)
    pipeline.prepare(find_sources(Path(sys.argv[1])), Path(sys.argv[2]), Settings(short_side=48),
                     run=partial(run_in_order, workers=1), reporter=Reporter(quiet=True),
                     shard_bytes=30_000)
"""


def start(videos, out, tmp_path) -> subprocess.Popen:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(videos), str(out)]
    return subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    )


def killed_after_first_shard(process: subprocess.Popen, out: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    while not (out / "shards" / "00000.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_a_killed_run_continues_to_the_same_store(videos, undisturbed, tmp_path, number):
    out = tmp_path / "store"
    killed_after_first_shard(start(videos, out, tmp_path), out, number)
    if number == signal.SIGINT:
        assert not list(out.glob(".spool-*"))
    with pytest.raises(DataError, match="is unfinished"):
        Store.open(out)
    prepare(videos, out, shard_bytes=30_000)
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("damage", ["orphan shard", "half a row", "leftovers"])
def test_what_a_kill_leaves_behind_is_put_right(videos, undisturbed, tmp_path, damage):
    out = tmp_path / "store"
    prepare(videos, out, shard_bytes=30_000)
    rows = read_rows(out / "manifest.jsonl")
    last = max(row.shard for row in rows if row.shard)
    lines = (out / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if last.encode() not in line]
    tail = next(line for line in lines if last.encode() in line)[:50]
    (out / "manifest.jsonl").write_bytes(b"".join(kept) + (tail if damage == "half a row" else b""))
    if damage == "leftovers":
        (out / "shards" / ".00009.safetensors.part").write_bytes(b"half")
        (out / ".manifest.jsonl.part").write_bytes(b"half")
        (out / ".spool-old").mkdir()
    prepare(videos, out, shard_bytes=30_000)
    assert content(out) == content(undisturbed)


def test_other_settings_or_sources_are_refused(videos, undisturbed, tmp_path):
    with pytest.raises(UsageError, match="begun with `--short-side 48`, not `64`") as raised:
        prepare(videos, undisturbed, settings=Settings(short_side=64))
    assert "--overwrite" in raised.value.hint
    render(tmp_path / "fall" / "a.mp4", static(frames=2))
    render(tmp_path / "walk" / "b.mp4", static(frames=2))
    with pytest.raises(UsageError, match="is not among the sources any more"):
        prepare(tmp_path, undisturbed)
    assert Store.open(undisturbed).rows


def test_a_folder_that_is_no_store_is_left_alone(videos, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is not empty and not a store"):
            prepare(videos, tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_starts_anew(videos, tmp_path):
    prepare(videos, tmp_path / "store")
    report = prepare(videos, tmp_path / "store", settings=Settings(short_side=32), overwrite=True)
    assert report.counts.ok == 6
    assert {row.height for row in report.rows if row.status == "ok"} == {32}


def test_new_labels_and_splits_need_no_decoding(tmp_path):
    folder = tmp_path / "videos"
    for name in "ab":
        render(folder / f"{name}.mp4", static(frames=2))
    out = tmp_path / "store"
    for text in ("a.mp4 0\nb.mp4 1\n", "a.mp4 1\nb.mp4 0\n"):
        (folder / "train.csv").write_text(text)
        sources = find_sources(folder, ["train.csv"])
        pipeline.prepare(sources, out, Settings(), run=ONE, reporter=QUIET)
    assert [row.label for row in Store.open(out).rows] == [1, 0]
    assert len(list((out / "shards").iterdir())) == 1


def test_a_worker_that_dies_costs_one_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "convert", dying_convert)
    report = prepare(videos, tmp_path / "store")
    reasons = {row.id: row.reason for row in report.failures}
    assert reasons["fall/clip 3.mp4"] == "crashed: its worker was killed by SIGSEGV"
    assert len(reasons) == 2 and report.counts.ok == 5
    assert not list((tmp_path / "store").glob(".spool-*"))


def dying_convert(job):
    from tatscli.store.convert import convert

    if job.path.name == "clip 3.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    return convert(job)


def test_check_decodes_and_writes_nothing(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = pipeline.check(find_sources(videos), run=ONE, reporter=QUIET)
    assert (report.counts.ok, report.counts.failed) == (6, 1)
    assert report.counts.frames == sum(6 + index for index in range(6))
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
def test_damaged_files_are_ok_with_a_warning(shared, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    os.symlink(shared / "clips" / "nasty" / "made_truncated_moov_first.mp4", folder / "cut.mp4")
    report = prepare(folder, tmp_path / "store")
    (row,) = report.rows
    assert (row.status, row.frames) == ("ok", 24)
    assert row.warning.startswith("damaged, some frames are missing: Invalid data")


def test_splits_of_a_store(tmp_path):
    folder = tmp_path / "videos"
    for name in "abc":
        render(folder / f"{name}.mp4", static(frames=2))
    (folder / "train.csv").write_text("a.mp4\nb.mp4\n")
    (folder / "val.csv").write_text("c.mp4\nb.mp4\n")
    sources = find_sources(folder, ["train.csv", "val.csv"])
    pipeline.prepare(sources, tmp_path / "store", Settings(), run=ONE, reporter=QUIET)
    store = Store.open(tmp_path / "store")
    assert (store.part("train"), store.part("val"), store.part(None)) == ([0, 1], [1, 2], [0, 1, 2])
    assert store.dataset.counts.splits == {"train": 2, "val": 2}
    with pytest.raises(DataError, match="no split `test`; it has `train`, `val`"):
        store.part("test")


def test_what_is_no_store(tmp_path, undisturbed):
    with pytest.raises(DataError, match="there is no store at") as raised:
        Store.open(tmp_path / "none")
    assert "tats prepare" in raised.value.hint
    with pytest.raises(DataError, match=r"it has no `dataset\.json`"):
        Store.open(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format_version": 99}')
    with pytest.raises(DataError, match="store format `99`"):
        Store.open(tmp_path)
    for text in ("{", "[]", '{"format_version": 1, "settings": 3}'):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match="is damaged"):
            Store.open(tmp_path)


def test_a_missing_shard_is_named(videos, tmp_path):
    prepare(videos, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    (tmp_path / "store" / "shards" / "00000.safetensors").unlink()
    with pytest.raises(DataError, match=r"00000\.safetensors` is damaged or missing"):
        store.jpegs(store.part(None)[0], [0])


def test_a_store_travels_to_other_processes(undisturbed):
    store = Store.open(undisturbed)
    first = store.jpegs(store.part(None)[0], [0])[0]
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.jpegs(copy.part(None)[0], [0])[0], first)


def test_rows_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="status"):
        Row(id="a", status="perhaps")
    assert Row(id="a", status="ok").in_split(None)


def test_exit_codes_are_what_the_docs_say():
    assert (Exit.OK, Exit.FAILED, Exit.USAGE, Exit.INTERRUPTED) == (0, 1, 2, 130)


def failing(number: int):
    """Return a runner under which every video that is tried fails as number so-and-so."""

    def run(work, jobs):
        for job in jobs:
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
    run = Counting()
    in_process.prepare(folder, out, run=run, reporter=Reporter(stderr=stderr))
    assert run.tried == ["b.mp4"]
    assert "warning: 1 of the sources have changed since" in stderr.getvalue()
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
        run = Counting()
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
    with pytest.raises(UsageError, match=r"`fall/one\.mp4`, which is not among") as raised:
        in_process.prepare(one, out)
    assert "--add" in raised.value.hint
    assert Store.open(out).dataset.counts.ok == 2


def test_adding_another_file_under_a_known_name_is_refused(tmp_path):
    out = tmp_path / "store"
    for index, folder in enumerate(("one", "two")):
        render(tmp_path / folder / "a.mp4", static(frames=2 + index))
    in_process.prepare(tmp_path / "one", out)
    before = in_process.content(out)
    with pytest.raises(DataError, match=r"`a\.mp4` is in `.*` already, from a file of \d+ bytes"):
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
    def run(work, jobs):
        for number, job in enumerate(jobs):
            if number in (1, 2):
                job.spool.with_suffix(".jpeg").write_bytes(b"half")
                yield job, Timeout(60) if number == 1 else Crash(-11)
                assert not list(job.spool.parent.glob(f"{number}.*"))
            else:
                yield job, work(job)

    report = in_process.prepare(videos, tmp_path / "store", run=run)
    reasons = [row.reason for row in report.failures]
    assert reasons[:2] == [
        "timeout: not done after 60 s",
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

    def run(work, jobs):
        for job, result in in_process.here(work, jobs):
            if job.path.name == "a.mp4":
                result.facts["duration"] = value
            yield job, result
            assert not list(job.spool.parent.glob("0.*"))

    in_process.prepare(folder, out, run=run)
    rows = in_process.rows_of(out)
    assert rows["a.mp4"].reason == "its header or time stamps are wrong: no finite duration"
    assert list(in_process.tensors_of(out)) == ["b.mp4"]
