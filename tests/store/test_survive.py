"""What may happen to a run of `prepare`, and that the next one makes up for it."""

import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tatscli.errors import DataError
from tatscli.lock import LOCK
from tatscli.store import convert as converting
from tatscli.store import prepare as pipeline
from tatscli.store import resume
from tatscli.store.convert import Converted
from tatscli.store.reader import Store
from tatscli.store.shards import Spool, checksum
from tatscli.store.sources import find_sources
from tests.clips import pan, render, static
from tests.processes import hear_interrupts
from tests.store.stores import (
    SHARD_BYTES,
    assert_same_videos,
    content,
    here,
    prepare,
    rows_of,
    tensors_of,
)

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from functools import partial
from pathlib import Path

from tatscli.console import Reporter
from tatscli.store import prepare as pipeline
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources

if __name__ == "__main__":
    pipeline.prepare(
        find_sources(Path(sys.argv[1])), Path(sys.argv[2]), Settings(short_side=48),
        run=partial(run_in_order, workers=2, timeout=60), reporter=Reporter(quiet=True),
        shard_bytes=int(sys.argv[3]),
    )
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Fourteen videos of two classes, two of them noise."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(12):
        clip = pan((index % 5, 1), frames=4 + index, height=64, width=96, seed=index)
        render(folder / f"{'fall' if index % 2 else 'walk'}/clip {index:02d}.mp4", clip)
    for index, name in enumerate(("fall/clip 05 noise.mp4", "walk/zero.mp4")):
        (folder / name).write_bytes(bytes(range(256)) * 40 * (1 - index))
    return folder


@pytest.fixture(scope="module")
def undisturbed(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "undisturbed"
    prepare(videos, out)
    assert len(list((out / "shards").iterdir())) > 3
    return out


@pytest.fixture
def start(videos, tmp_path):
    """Start runs of `prepare`, each with its workers in a process group of its own."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    started = []

    def begin(out: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(script), str(videos), str(out), str(SHARD_BYTES)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )
        started.append(process)
        deadline = time.monotonic() + 60
        while not (out / LOCK).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)


def finish(process: subprocess.Popen) -> None:
    assert process.wait(timeout=120) == 0, process.communicate()


def kill_at_random(start, undisturbed: Path, folder: Path, moments: int, seed: int) -> None:
    """Kill runs with all their workers at random moments, up to four times a store."""
    chance = random.Random(seed)
    measured = start(folder / "measured")
    begun = time.monotonic()
    finish(measured)
    whole = time.monotonic() - begun
    kills = number = 0
    while kills < moments:
        out = folder / f"store-{number}"
        for _ in range(min(4, moments - kills)):
            process = start(out)
            time.sleep(chance.uniform(0, whole))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills += 1
        finish(start(out))
        assert content(out) == content(undisturbed)
        assert_same_videos(out, undisturbed)
        number += 1


def test_a_run_killed_at_four_moments_comes_out_the_same(undisturbed, start, tmp_path):
    kill_at_random(start, undisturbed, tmp_path, 4, seed=6)


@pytest.mark.slow
def test_a_run_killed_at_thirty_moments_comes_out_the_same(undisturbed, start, tmp_path):
    kill_at_random(start, undisturbed, tmp_path, 30, seed=30)


@pytest.mark.parametrize("moment", [0.0, 0.7, 1.4])
def test_control_c_leaves_nothing_behind(undisturbed, start, tmp_path, moment):
    process = start(tmp_path / "store")
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 1, -signal.SIGINT)
    if stderr:  # nothing is said where the run was over and the interpreter was on its way out
        assert b"KeyboardInterrupt" in stderr
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert LOCK not in left and not any(name.startswith(".spool") for name in left)
    finish(start(tmp_path / "store"))
    assert content(tmp_path / "store") == content(undisturbed)


def test_a_second_run_is_refused_and_disturbs_nothing(videos, undisturbed, start, tmp_path, cli):
    out = tmp_path / "store"
    first = start(out)
    while not (out / LOCK).read_bytes():  # held, but not signed yet
        time.sleep(0.001)
    os.killpg(first.pid, signal.SIGSTOP)
    second = cli("prepare", videos, "--out", out, "--workers", 1)
    os.killpg(first.pid, signal.SIGCONT)
    assert second.code == 1
    assert f"error: `{out}` is in use by process {first.pid} on `" in second.stderr
    finish(first)
    assert content(out) == content(undisturbed)


WRITERS = ("write_dataset", "write_rows", "write_shard", "append_rows")


@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("when", ["before", "midway"])
def test_a_full_disk_at_any_write_is_made_up_for(
    videos, undisturbed, tmp_path, monkeypatch, writer, call, when
):
    out, calls = tmp_path / "store", iter(range(100))
    right = getattr(pipeline, writer)

    def full(path, content):
        if next(calls) == call:
            if when == "midway" and writer == "append_rows":
                right(path, list(content)[:-1])
            elif when == "midway" and writer == "write_shard":
                path.with_name(f".{path.name}.part").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return right(path, content)

    monkeypatch.setattr(pipeline, writer, full)
    monkeypatch.setattr(resume, writer, full, raising=False)
    failed = writer in ("write_shard", "append_rows") or call < 2
    if failed:
        with pytest.raises(DataError, match=f"cannot write `{out}`: No space left") as raised:
            prepare(videos, out)
        assert raised.value.hint.startswith("free some space, then rerun the same command")
        assert not (out / LOCK).exists() and not list(out.glob(".spool-*"))
        if (out / "dataset.json").exists():
            with pytest.raises(DataError, match="is unfinished"):
                Store.open(out)
    monkeypatch.undo()
    prepare(videos, out)
    assert content(out) == content(undisturbed)


def test_a_full_disk_under_a_worker_stops_the_run_and_not_the_video(videos, tmp_path, monkeypatch):
    def full(spool):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "spool")

    monkeypatch.setattr(converting, "checksum", full)
    with pytest.raises(DataError, match="cannot write `spool`: No space left") as raised:
        prepare(videos, tmp_path / "store")
    assert "rerun the same command" in raised.value.hint
    assert rows_of(tmp_path / "store") == {}


class Killed(BaseException):
    """Ends a run in this process as a kill would end another."""


def canned(work, groups):
    """A runner that takes the bytes of each source for its pictures: no decoding, no time."""
    for (job,) in groups:
        data = job.path.read_bytes()
        jpeg, motion = job.spool.with_suffix(".jpeg"), job.spool.with_suffix(".motion")
        jpeg.write_bytes(data)
        motion.write_bytes(bytes(4))
        offsets, times, valid = np.array([0, len(data)]), np.zeros(1), np.zeros(1, bool)
        spool = Spool(jpeg, motion, (1, 1, 1, 2), offsets, times, valid)
        facts = {"frames": 1, "width": 1, "height": 1, "bytes": len(data)}
        facts["checksum"] = checksum(spool)
        if b"bad" in data:
            spool.remove()
            yield job, Converted(reason="bad")
        else:
            yield job, Converted(facts=facts, spool=spool)


def write_sources(folder: Path, names: str, length: int = 500) -> None:
    for name in names:
        path = folder / ("fall" if name < "d" else "walk") / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * length)
    (folder / "walk" / "f bad.mp4").write_bytes(b"bad" * len(names))


SCENARIOS = {
    "new": {},
    "overwrite": {"overwrite": True},
    "more files": {},
    "add": {"add": True},
    "changed files": {},
    "retry": {"retry_failed": True},
}


def scene(name: str, folder: Path) -> tuple[Path, Path]:
    """Make the videos, and the store that an earlier run has left; return both."""
    videos, out = folder / "videos", folder / "store"
    write_sources(videos, "ag" if name == "more files" else "abcdeg")
    if name != "new":
        prepare(videos, out, run=canned, shard_bytes=1000)
    if name == "more files":
        write_sources(videos, "abcdeg")
    if name == "add":
        videos = folder / "others"
        write_sources(videos, "hijk")
        for path in [*videos.rglob("*bad.mp4"), *(videos / "walk").glob("h.mp4")]:
            path.unlink()
        write_sources(folder / "others" / "run", "lm")
    if name == "changed files":
        write_sources(videos, "bg", length=700)
    return videos, out


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_every_single_write_is_made_up_for(tmp_path, monkeypatch, scenario):
    options = {"run": canned, "shard_bytes": 1000, **SCENARIOS[scenario]}
    videos, expected = scene(scenario, tmp_path / "undisturbed")
    prepare(videos, expected, **options)
    assert len(rows_of(expected)) >= 6
    for when in ("before", "after"):
        for moment in itertools.count():
            videos, out = scene(scenario, tmp_path / f"{when}-{moment}")
            writes = itertools.count()

            def dying(right, *args, when=when, moment=moment, writes=writes):
                mine = next(writes) == moment
                if mine and when == "before":
                    raise Killed
                result = right(*args)
                if mine:
                    raise Killed
                return result

            with monkeypatch.context() as patched:
                for module, names in (
                    (pipeline, ("write_shard", "append_rows", "write_rows", "write_dataset")),
                    (resume, ("write_rows", "write_dataset", "clean")),
                ):
                    for name in names:
                        patched.setattr(module, name, partial(dying, getattr(module, name)))
                killed = True
                try:
                    prepare(videos, out, **options)
                    killed = False
                except Killed:
                    pass
            if not killed:
                break
            (out / LOCK).write_text("{}")  # what only a true kill leaves
            (out / ".dataset.json.part").write_text("{")
            if (out / "dataset.json").exists():
                (out / ".manifest.jsonl.part").write_text("{")
                (out / ".spool-0").mkdir()
            prepare(videos, out, **options)
            if scenario == "changed files":  # old data may lie elsewhere
                assert_same_videos(out, expected)
            else:
                assert content(out) == content(expected), (when, moment)
        assert moment > 5


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own; `disk("size=1m")` changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a file system here: {error}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, timeout=60)

    yield folder, remount
    subprocess.run(["umount", str(folder)], check=True, timeout=60)


def test_a_disk_that_grows_too_slowly(videos, undisturbed, disk, cli):
    """Run with more and more room: each run gets further, and none loses anything."""
    folder, remount = disk
    out, failures, done = folder / "store", 0, 0
    for kilobytes in range(64, 4096, 64):
        remount(f"size={kilobytes}k")
        try:
            prepare(videos, out)
            break
        except DataError as error:
            assert "No space left" in error.message and error.hint
            failures += 1
            assert len(rows_of(out)) >= done
            done = len(rows_of(out))
    assert failures > 2 and done > 2
    assert content(out) == content(undisturbed)


def test_a_full_disk_is_one_message(videos, disk, cli):
    folder, remount = disk
    outcome = cli("prepare", videos, "--out", folder / "store", "--workers", 2, "--quality", 2)
    assert outcome.code == 1 and outcome.stdout == ""
    (message,) = [line for line in outcome.stderr.splitlines() if "No space left" in line]
    assert message.startswith("error: cannot write `")
    assert "Traceback" not in outcome.stderr
    remount("size=8m")
    again = cli("prepare", videos, "--out", folder / "store", "--workers", 2, "--quality", 2)
    assert again.code == 1 and Store.open(folder / "store").dataset.counts.ok == 12


def test_a_target_that_cannot_be_written(videos, disk, cli):
    folder, remount = disk
    remount("size=8m")
    prepare(videos, folder / "made")
    before = content(folder / "made")
    remount("ro")
    for name in ("new", "made"):
        outcome = cli("prepare", videos, "--out", folder / name, "--short-side", 48)
        assert outcome.code == 1 and outcome.stdout == ""
        assert f"error: cannot write `{folder / name}" in outcome.stderr
        assert "Read-only file system" in outcome.stderr
    assert content(folder / "made") == before
    assert cli("store", "verify", folder / "made").code == 0


def test_a_target_below_a_file(videos, tmp_path, cli):
    (tmp_path / "file").write_text("in the way")
    outcome = cli("prepare", videos, "--out", tmp_path / "file" / "store")
    assert outcome.code == 1
    assert "error: cannot write" in outcome.stderr and "Not a directory" in outcome.stderr


def test_a_source_that_vanishes_is_a_failed_row_until_it_is_back(tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "store"
    for name in "abc":
        render(folder / f"{name}.mp4", static(frames=2, height=64, width=64))
    (folder / "train.csv").write_text("a.mp4\nb.mp4\nc.mp4\n")
    aside = tmp_path / "aside.mp4"

    def run(work, groups):
        for job, result in here(work, groups):
            if job.path.name == "a.mp4":  # its turn has not come yet
                (folder / "b.mp4").rename(aside)
            yield job, result

    sources = find_sources(folder, ["train.csv"])
    for attempt in (run, here):
        prepare(sources, out, run=attempt)
        rows = rows_of(out)
        assert [rows[name].status for name in ("a.mp4", "b.mp4", "c.mp4")] == ["ok", "failed", "ok"]
        assert rows["b.mp4"].reason == "cannot be read: no such file or directory"
    aside.rename(folder / "b.mp4")
    prepare(sources, out)
    assert rows_of(out)["b.mp4"].status == "ok"
    assert len(tensors_of(out)) == 3
