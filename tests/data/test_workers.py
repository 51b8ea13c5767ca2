"""Loader workers that hang, die or run out of room: found at once, and named with their clip."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
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
from typing import Any

import numpy as np
import pytest

from tatscli.data import loader, workers
from tatscli.data.dataset import PretrainClips
from tatscli.data.loader import evaluation_batches, training_batches
from tatscli.data.reading import Batches
from tatscli.data.views import EvalViews
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
    yield
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.02)
    assert not multiprocessing.active_children()


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
    fault: Any, cause: str, hint: str
) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read(Faulty(fault))
    found = caught.value
    assert found.message.startswith("loader worker 0 (process ")
    assert found.message.endswith(f"{cause} while it read `videos/2.mp4` (row 2)")
    assert hint in (found.hint or "")
    assert time.monotonic() - began < 5


def test_what_other_workers_have_read_arrives_before_the_news_of_a_death() -> None:
    """Batches of one video: 0 and 1 come, and then it is told who took 2 along."""
    views = EvalViews(Faulty(lambda: fall(signal.SIGKILL)), range(6), DATA, sampling=DATA.sampling)
    rows = []
    with pytest.raises(DataError, match=r"worker 0 .*`videos/2\.mp4`"):
        for batch in evaluation_batches(views, batch=1, workers=2):
            rows += batch.row_B.tolist()
    assert rows == [0, 1]


def test_a_worker_that_hangs_is_warned_of_once_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "SLOW", 0.3)
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        list(
            islice(
                training(Faulty(lambda: time.sleep(60)), workers=2, timeout=1.2, warn=said.append),
                9,
            )
        )
    assert time.monotonic() - began < 10
    (warning,) = said
    assert "has been reading `videos/2.mp4` (row 2) for 0 s; it is given up after 1.2 s" in warning
    assert warning.split(" has been")[0] == caught.value.message.split(" has been")[0]
    assert "more than `data.timeout: 1.2` allows" in caught.value.message


def test_slow_clips_are_no_hang_however_long_a_batch_takes() -> None:
    class Slow(FakeStore):
        def jpegs(self, row: int, frames: Sequence[int]) -> list[np.ndarray]:
            time.sleep(0.4)
            return super().jpegs(row, frames)

    found = read(Slow([4] * 4, size=(16, 16)), workers=1, batch=4, timeout=1.0)
    assert found[0].row_B.tolist() == [0, 1, 2, 3]


def test_a_bug_in_a_reader_keeps_its_traceback() -> None:
    def bug() -> None:
        raise KeyError("no such thing")

    with pytest.raises(RuntimeError, match=r"(?s)loader worker 0 failed:.*in bug.*no such thing"):
        read(Faulty(bug))


def test_another_thread_ends_the_wait_and_the_workers() -> None:
    batches = training(Faulty(lambda: time.sleep(60)), workers=2)
    thread = threading.Thread(target=lambda: list(batches))
    thread.start()
    time.sleep(0.5)  # by now it waits
    began = time.monotonic()
    batches.close()
    thread.join(5)
    assert not thread.is_alive()
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("taken", [0, 1])
def test_dropping_the_batches_ends_the_workers(taken: int) -> None:
    batches = training(FakeStore([4] * 6, size=(16, 16)), workers=2)
    list(islice(batches, taken))
    assert len(multiprocessing.active_children()) == 2
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
        "3 instead of 8 loader workers: 2 batches of each would take 16 GB, and 10 GB of memory"
        " are free"
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
