"""Preparing: what is in a store, that it is always the same, and that nothing finished is lost."""

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tatscli.console import Reporter
from tatscli.errors import DataError, Exit, UsageError
from tatscli.store import prepare as pipeline
from tatscli.store.pool import run_in_order
from tatscli.store.reader import Store
from tatscli.store.schema import Row, Settings, read_rows
from tatscli.store.sources import find_sources
from tatscli.video.frames import read_frames
from tests.clips import render, static
from tests.processes import hear_interrupts
from tests.store.stores import QUIET, Counting, content
from tests.store.stores import prepare_with_workers as prepare

ONE = partial(run_in_order, workers=1)


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
    assert "7 of 7 are done\n1 of these failed; `--retry-failed` retries them" in stderr.getvalue()


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
    with pytest.raises(UsageError, match="is no longer among the sources"):
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
    monkeypatch.setattr(pipeline, "convert_together", dying_convert)
    report = prepare(videos, tmp_path / "store")
    reasons = {row.id: row.reason for row in report.failures}
    assert reasons["fall/clip 3.mp4"] == "crashed: its worker was killed by SIGSEGV"
    assert len(reasons) == 2 and report.counts.ok == 5
    assert not list((tmp_path / "store").glob(".spool-*"))


def dying_convert(jobs):
    from tatscli.store.convert import convert_together

    if jobs[0].path.name == "clip 3.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    return convert_together(jobs)


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
