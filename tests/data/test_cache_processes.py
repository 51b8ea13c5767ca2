"""Decoded frames in memory: workers, ranks and kills."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.data import loader
from tatscli.data.cache import frames_in_memory
from tatscli.data.dataset import Clips
from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.errors import RecipeError
from tests.data.fake_store import FakeStore
from tests.data.noisy import FRAME, Noisy, data, equal, evaluated, plain, views

ROOT = Path(__file__).resolve().parents[2]
needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs memfd_create")


def starting(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(loader, "_context", lambda *, on_cuda: context)


METHODS = [
    "fork",
    pytest.param("forkserver", marks=pytest.mark.slow),
    pytest.param("spawn", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", METHODS)
def test_what_workers_decode_is_there_for_everybody(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting(method, monkeypatch)
    store = Noisy([20] * 5)
    scored = views(store, cache="ram")
    first = evaluated(scored, workers=2)
    assert not store.read  # this process has decoded nothing
    store.lose()
    assert equal(evaluated(scored), first)
    assert equal(evaluated(scored, workers=2), first)  # by new workers, which could not decode


@pytest.mark.parametrize("method", METHODS)
def test_what_this_process_decodes_is_there_for_workers(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting(method, monkeypatch)
    store = Noisy([20] * 5)
    scored = views(store, cache="ram")
    first = evaluated(scored)
    store.lose()
    assert equal(evaluated(scored, workers=2), first)


def test_a_temporary_file_does_where_there_is_no_memfd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    store = Noisy([20] * 5)
    scored = views(store, cache="ram")
    assert not list(tmp_path.iterdir())
    first = evaluated(scored, workers=2)
    store.lose()
    assert equal(evaluated(scored), first)

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    none, plan = frames_in_memory(store, range(5), data())
    assert none is None
    assert "No space left on device" in str(plan)
    with pytest.raises(RecipeError, match="No space left on device"):
        views(store, cache="ram")


def read_at_random(clips: Clips, start: Any, seed: int) -> None:
    """Read random frames while others do; end with 1 where one is wrong."""
    draw = random.Random(seed)
    store = clips.store
    start.wait()
    for _ in range(60):
        row = draw.randrange(len(clips.rows))
        frames = sorted(draw.sample(range(clips.store.rows[row].frames), 4))
        found = clips.pictures(row, frames)
        if draw.random() < 0.5:
            wanted = decode_jpegs([store._picture(row, frame) for frame in frames])
            if not torch.equal(found, wanted):
                os._exit(1)
    os._exit(0)


def test_processes_that_fill_the_same_frames_at_once_see_whole_ones() -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(3):
        clips = plain(Noisy([8] * 3, size=(64, 64)), cache="ram")
        start = context.Barrier(4)
        readers = [
            context.Process(target=read_at_random, args=(clips, start, 4 * attempt + number))
            for number in range(4)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert [reader.exitcode for reader in readers] == [0] * 4


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@needs_memfd
def test_the_memory_has_no_name_and_ends_with_the_clips() -> None:
    before = descriptors()
    clips = plain(FakeStore([10]), cache="ram")
    assert clips.cache is not None
    clips.pictures(0, [1])
    found = os.fstat(clips.cache._descriptor)
    assert found.st_nlink == 0
    # Not a file of the mounted /dev/shm, which containers keep small.
    assert found.st_dev != os.stat("/dev/shm").st_dev
    # Room for ten frames, of which one takes memory, and a page of flags.
    assert FRAME <= 512 * found.st_blocks < 2 * FRAME + 4096
    del clips
    assert descriptors() == before


def test_a_cache_goes_to_a_starting_process_and_nowhere_else() -> None:
    with pytest.raises(RuntimeError, match="should only be shared between processes"):
        pickle.dumps(plain(FakeStore([10]), cache="ram"))


def holders(inode: int) -> set[int]:
    """Processes that have a memory file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if "memfd:tats-frames" in os.readlink(link) and os.stat(link).st_ino == inode:
                found.add(int(link.parts[2]))
        except OSError:
            continue  # ended, or not ours
    return found


KILLED = """
import os, sys, time
from tests.data.noisy import Noisy, views
from tatscli.data.loader import evaluation_batches

if __name__ == "__main__":
    scored = views(Noisy([20] * 50), cache="ram")
    batches = evaluation_batches(scored, batch=1, workers=2)
    next(batches)
    print(os.fstat(scored.cache._descriptor).st_ino, flush=True)
    time.sleep(60)
"""


@needs_memfd
@pytest.mark.slow
def test_nothing_is_left_after_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    inode = int(process.stdout.readline())
    assert len(holders(inode)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    ended = time.monotonic() + 60
    while holders(inode) and time.monotonic() < ended:
        time.sleep(0.2)
    assert not holders(inode)
    assert not list(tmp_path.iterdir())


RANKS = """
import json, os, sys
from pathlib import Path
from tests.data.noisy import Noisy, evaluated, views

if __name__ == "__main__":
    store = Noisy([20] * 5)
    found = {}
    for gb in json.loads(sys.argv[2]):
        scored = views(store, cache_gb=gb)
        evaluated(scored, workers=1)
        decoded_here = len(store.read)
        evaluated(scored)
        found[gb] = str(scored.cache_plan), decoded_here, len(store.read)
        store.read.clear()
        del scored
    Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_ranks_have_a_cache_each_within_one_bound(tmp_path: Path) -> None:
    script, out = tmp_path / "ranks.py", tmp_path / "out"
    script.write_text(RANKS)
    out.mkdir()
    both, one = 2 * 100 * FRAME / 1e9, 1.9 * 100 * FRAME / 1e9
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29619"]
    subprocess.run(
        [sys.executable, *launch, script, out, json.dumps([both, one])],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    for rank in range(2):
        kept, bare = json.loads((out / str(rank)).read_text()).values()
        assert kept[0].startswith("2 ranks x 0.922 MB of at most 1.84 MB")
        assert kept[1:] == [0, 0]  # the worker had decoded all of it
        assert "1.84 MB of decoded frames on 2 ranks are more than" in bare[0]
        assert bare[2] > 0
