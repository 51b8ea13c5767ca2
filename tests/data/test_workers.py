"""Loader workers that hang, die or run out of room: found at once, and named with their clip."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tatscli.data import loader, workers
from tatscli.data.dataset import PretrainClips
from tatscli.data.loader import evaluation_batches, training_batches
from tatscli.data.reading import Batches
from tatscli.data.views import EvalViews
from tatscli.data.workers import Workers
from tatscli.errors import DataError, TatsError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Data, Optim, Sampling
from tests.data.fake_store import FakeStore

DATA = Data(store="x", frames=2, size=16, sampling=Sampling(stride=1), cache="none")


class Faulty(FakeStore):
    """Row 2 does something else than arrive."""

    def __init__(self, fault: Any) -> None:
        super().__init__([4] * 6, size=(16, 16))
        self.fault = fault

    def jpegs(self, row: int, frames: Sequence[int]) -> list[np.ndarray]:
        if row == 2:
            self.fault()
        return super().jpegs(row, frames)


def fall(number: int) -> None:
    """Die of a signal, without pytest's report of it."""
    faulthandler.disable()
    os.kill(os.getpid(), number)


def read(store: FakeStore, *, workers: int = 2, batch: int = 3, **options: Any) -> list[Any]:
    """Read all rows in batches of three: the faulty one is the last of the first batch."""
    views = EvalViews(store, range(len(store.rows)), DATA, sampling=DATA.sampling)
    return list(evaluation_batches(views, batch=batch, workers=workers, **options))


def training(store: FakeStore, **options: Any) -> Batches:
    optim = Optim(total_batch=2, batch_per_device=2, epochs=9, warmup_epochs=0)
    plan = derive_schedule(optim, videos=len(store.rows), repeats=1, world=1)
    clips = PretrainClips(store, range(len(store.rows)), DATA, patch=8, seed=0)
    return training_batches(clips, plan, seed=0, **options)


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> Iterator[None]:
    before = {*multiprocessing.active_children()}
    yield
    until = time.monotonic() + 60
    while {*multiprocessing.active_children()} - before and time.monotonic() < until:
        time.sleep(0.02)
    assert not {*multiprocessing.active_children()} - before


@pytest.mark.parametrize(
    ("fault", "cause", "hint"),
    [
        (lambda: fall(signal.SIGKILL), "was killed by SIGKILL", "memory"),
        (lambda: fall(signal.SIGBUS), "was killed by SIGBUS", "tats store verify"),
        (lambda: fall(signal.SIGSEGV), "was killed by SIGSEGV", "data.workers=0"),
        (lambda: os._exit(3), "ended with exit code 3", "data.workers=0"),
    ],
)
def test_a_dead_worker_is_named_at_once_with_its_clip_and_its_cause(
    fault: Any, cause: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []
    start = Workers.__init__

    def started(crew: Workers, *args: Any, **options: Any) -> None:
        start(crew, *args, **options)
        pids.extend(process.pid or 0 for process in crew._processes)

    monkeypatch.setattr(Workers, "__init__", started)
    with pytest.raises(DataError) as caught:
        read(Faulty(fault), timeout=600)
    found = caught.value
    assert found.message.startswith(f"loader worker 0 (process {pids[0]}) ")
    assert found.message.endswith(f"{cause} while reading `videos/2.mp4` (row 2)")
    assert hint in (found.hint or "")


def test_what_other_workers_have_read_arrives_before_the_news_of_a_death() -> None:
    """Batches of one video: 0 and 1 come, and then it is told who took 2 along."""
    views = EvalViews(Faulty(lambda: fall(signal.SIGKILL)), range(6), DATA, sampling=DATA.sampling)
    rows = []
    with pytest.raises(DataError, match=r"worker 0 .*`videos/2\.mp4`"):
        for batch in evaluation_batches(views, batch=1, workers=2):
            rows += batch.row_B.tolist()
    assert rows == [0, 1]


class Clock:
    """A clock that goes on at every look at a worker which is at a certain row, and at no other:
    so that a busy machine makes nobody late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, row: int, step: float) -> None:
        self.now, look = 0.0, Workers._watch

        def watch(crew: Workers, worker: int) -> None:
            if crew._table.of(worker)[0] == row:
                self.now += step
            look(crew, worker)

        monkeypatch.setattr(Workers, "_watch", watch)
        monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: self.now))


def test_a_worker_that_hangs_is_warned_of_once_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Clock(monkeypatch, row=2, step=50.0)
    said: list[str] = []
    batches = training(Faulty(lambda: time.sleep(600)), workers=2, timeout=200.0, warn=said.append)
    with pytest.raises(DataError) as caught:
        list(islice(batches, 9))
    (warning,) = said
    assert re.search(r"reading `videos/2.mp4` \(row 2\) for 100 s; giving up after 200 s", warning)
    assert warning.split(" has been")[0] == caught.value.message.split(" has been")[0]
    assert "more than `data.timeout: 200` allows" in caught.value.message


def test_slow_clips_are_no_hang_however_long_a_batch_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that is looked at every 0.6 s: what counts is the time over one clip."""
    now, clip = 0.0, (-1, 0)
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now))
    crew = Workers.__new__(Workers)
    crew._name, crew._timeout, crew._warn, crew._slow = str, 1.0, None, set()
    crew._table = SimpleNamespace(of=lambda _: clip)
    crew._processes, crew._seen = [SimpleNamespace(pid=7)], [(-1, 0, 0.0)]
    for number in range(4):
        now, clip = now + 0.6, (0, number)
        crew._watch(0)
    now += 1.2
    with pytest.raises(DataError, match=r"process 7\) has been reading `0` \(row 0\) for 1 s"):
        crew._watch(0)


def test_a_bug_in_a_reader_keeps_its_traceback() -> None:
    def bug() -> None:
        raise KeyError("no such thing")

    with pytest.raises(RuntimeError, match=r"(?s)loader worker 0 failed:.*in bug.*no such thing"):
        read(Faulty(bug))


def test_another_thread_ends_the_wait_and_the_workers() -> None:
    batches = training(Faulty(lambda: time.sleep(600)), workers=2)
    thread = threading.Thread(target=lambda: list(batches))
    thread.start()
    time.sleep(0.5)  # by now it waits, unless the machine is busy
    batches.close()
    thread.join(60)
    assert not thread.is_alive()


ORPHANED = """
import multiprocessing, sys, time
from itertools import islice
from tests.data.test_workers import Faulty, training
batches = training(Faulty(lambda: time.sleep(600)), workers=2)
print(*(one.pid for one in multiprocessing.active_children()), flush=True)
list(islice(batches, 9))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_workers_end_with_a_process_that_is_killed_whatever_they_are_at() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.5)  # by now one of them is at the clip that takes ten minutes
        process.kill()
    until = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("taken", [0, 1])
def test_dropping_the_batches_ends_the_workers(taken: int) -> None:
    before = {*multiprocessing.active_children()}
    batches = training(FakeStore([4] * 6, size=(16, 16)), workers=2)
    list(islice(batches, taken))
    assert len({*multiprocessing.active_children()} - before) == 2
    del batches


def test_less_memory_means_fewer_workers_said_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(loader, "free_memory", lambda: 10 * 10**9)
    assert loader._affordable(8, 10**8, said.append) == 8
    assert not said
    assert loader._affordable(8, 10**9, said.append) == 3  # 4 x 2 GB with the one at work
    assert said == [
        "using 3 instead of 8 loader workers: 2 batches of each would take 16 GB, and 10 GB of"
        " memory are free"
    ]
    assert loader._affordable(8, 10**11, said.append) == 1
    monkeypatch.setattr(loader, "free_memory", lambda: None)
    assert loader._affordable(8, 10**11, said.append) == 8


FULL = """
import os
try:
    while True:
        with open(f"/dev/shm/{os.urandom(4).hex()}", "wb") as file:
            file.write(b"x" * 4096)
except OSError:
    pass  # now it is full
from itertools import islice
import torch
from tests.data.test_workers import FakeStore, training
store = FakeStore([4] * 6, size=(16, 16))
alone = list(islice(training(store), 6))
read = list(islice(training(store, workers=2), 6))
assert all(torch.equal(a.video_BCTHW, b.video_BCTHW) for a, b in zip(alone, read, strict=True))
print("same", os.statvfs("/dev/shm").f_bavail)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs `unshare`")
def test_workers_do_without_dev_shm() -> None:
    """In a mount namespace whose /dev/shm has not one page left, as of a container's 64 MB."""
    shell = 'mount -t tmpfs -o size=16k tmpfs /dev/shm || exit 77; exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, sys.executable, FULL],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode in (1, 77) and "same" not in done.stdout and "Traceback" not in done.stderr:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.stdout.split() == ["same", "0"], done.stderr


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process open no more than a dozen files beside those it has open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = len(os.listdir("/proc/self/fd")) + 12
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    yield low
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_more_workers_than_open_files_allow_are_refused_in_one_line(
    few_files: int, method: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(loader, "_context", lambda **_: context)
    store = FakeStore([4] * 40, size=(16, 16))
    with pytest.raises(
        DataError, match=f"^8 loader workers need .* may have {few_files}$"
    ) as error:
        read(store, workers=8, batch=1)
    assert "ulimit -n" in str(error.value.hint) and "data.workers" in str(error.value.hint)
    assert "Traceback" not in capfd.readouterr().err


def test_a_worker_without_room_for_a_batch_says_what_it_lacks(few_files: int) -> None:
    def fault() -> None:
        with suppress(OSError):
            while True:
                kept.append(os.open(os.devnull, os.O_RDONLY))

    kept: list[int] = []
    with pytest.raises(TatsError, match=f"too many open files in a loader worker.* {few_files}$"):
        read(Faulty(fault), workers=1)
