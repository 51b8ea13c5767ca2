"""A training that is told to stop: whenever that is, it saves, says so, and goes on as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tatscli.engine import signals
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.halfway import Halfway
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson, Weights
from tatscli.engine.signals import heeding
from tatscli.engine.training import Training
from tatscli.errors import Stopped
from tests.engine.toy import ToyBatch, resumed, said, timeless, toy_training
from tests.processes import SLOW, hear_interrupts

OVER = threading.Event()
"""Set at the end of a test: what hangs then goes on, and its thread ends."""


@pytest.fixture(autouse=True)
def _over() -> Iterator[None]:
    OVER.clear()
    yield
    OVER.set()


def tell(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def stalling(training: Training, after: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Let the loader hang before one of its batches, and a signal come meanwhile."""
    plain = training.batches

    def batches(start: int) -> Iterator[ToyBatch]:
        for count, batch in enumerate(plain(start)):
            if count == after:
                threading.Timer(0.3, tell, [number]).start()
                OVER.wait(SLOW)
            yield batch

    training.batches = batches


class Counter:
    """A part whose state changes in place with every micro-batch, as a sampler's does."""

    def __init__(self) -> None:
        self.count = torch.zeros(())

    def tensors(self) -> dict[str, Tensor]:
        return {"count": self.count}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.count.copy_(tensors["count"])

    def after_step(self, done: int, total: int) -> Lesson:
        return Lesson()


def counting(training: Training) -> Training:
    """Count micro-batches in a part of the training, and let the loss depend on the count."""
    counter, plain = Counter(), training.step

    def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
        counter.count += 1
        lesson = plain(batch, generator)
        return lesson._replace(loss=lesson.loss * (1 + counter.count / 100))

    training.step, training.parts = step, {**training.parts, "counter": counter}
    return training


def assert_same_end(one: Training, two: Training) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
        (signal.SIGHUP, 129),
        (signal.SIGUSR1, 138),
    ],
)
def test_a_loader_that_hangs_holds_up_no_signal(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    training = toy_training(tmp_path, save_every=100)
    stalling(training, after=3, number=number)
    if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)  # the tests themselves may run under nohup
    before = signal.getsignal(number)
    began = time.monotonic()
    with pytest.raises(Stopped) as stopped:
        train(training)
    assert time.monotonic() - began < SLOW / 2
    assert stopped.value.exit_code == code
    assert "stopped after step 3 of 10" in stopped.value.message
    assert find_checkpoint(tmp_path).step == 3
    assert signal.getsignal(number) == before


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_steps=3)
    plain = training.step
    training.step = lambda batch, generator: (tell(signal.SIGHUP), plain(batch, generator))[1]
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(training)["steps"] == 3
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize("after", [4, 5])
def test_a_step_given_up_halfway_leaves_the_step_before_it(
    tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches a step: the fifth begins the third step, the sixth ends it."""
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    options = {"batch_per_device": 4, "save_every": 100}
    straight = counting(toy_training(tmp_path / "straight", **options))
    train(straight)
    training = counting(toy_training(tmp_path / "run", **options))
    stalling(training, after)
    with pytest.raises(Stopped, match="stopped after step 2 of 10"):
        train(training)
    checkpoint = find_checkpoint(tmp_path / "run")
    assert checkpoint.step == 2
    assert float(checkpoint.tensors("counter")["count"]) == 4
    again = counting(toy_training(tmp_path / "run", **options))
    again.restore(checkpoint)
    train(again)
    assert_same_end(straight, again)
    assert [one["seen"] for one in timeless(tmp_path / "run")] == list(range(10))
    assert timeless(tmp_path / "run") == timeless(tmp_path / "straight")


def test_what_nobody_kept_is_not_saved_halfway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State that first changes in the very step that is given up: what is on disk stays."""
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    training = toy_training(tmp_path, batch_per_device=4, save_every=100)
    counter, plain = Counter(), training.step

    def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
        if training.done == 2:
            counter.count += 1
        return plain(batch, generator)

    training.step, training.parts = step, {**training.parts, "counter": counter}
    stalling(training, after=5)
    with pytest.raises(Stopped, match="before the first checkpoint") as stopped:
        train(training)
    assert "--resume auto" in str(stopped.value.hint)
    assert not (tmp_path / "checkpoints").exists()


def test_running_numbers_of_torchs_batch_norm_are_kept() -> None:
    """Its kernels change them without torch's counters noticing."""
    norm = nn.BatchNorm1d(4)
    halfway = Halfway({"model": Weights(norm)}, accumulation=2)
    for _ in range(2):
        before = {name: one.clone() for name, one in norm.state_dict().items()}
        halfway.begin()
        norm(torch.randn(8, 4))
        halfway.look()
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    kept = halfway.state()["model"]
    for name, value in before.items():
        assert torch.equal(kept[name], value), name


def test_a_signal_before_the_first_step_saves_nothing(tmp_path: Path) -> None:
    training = toy_training(tmp_path)
    stalling(training, after=0)
    with pytest.raises(Stopped, match="stopped after step 0 of 10, before the first checkpoint"):
        train(training)
    assert not (tmp_path / "checkpoints").exists()


SECOND = """
import signal, sys, time
from pathlib import Path
from tests.engine.toy import toy_training
from tatscli.engine import signals
from tatscli.engine.loop import train
signals._ONE_KEY = 0.0  # every Ctrl-C is one of its own, however fast
hear = signals.StopRequest.hear
def heard(request, number, frame):
    hear(request, number, frame)
    print("heard", flush=True)  # only now is a further signal a second one
signals.StopRequest.hear = heard
training = toy_training(Path(sys.argv[1]))
def step(batch, generator):
    print("step", flush=True)
    time.sleep(600)
training.step = step
train(training)
"""


def test_a_second_interrupt_is_followed_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SECOND, str(tmp_path)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_interrupts
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"step\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"heard\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=SLOW) != 0
        finally:
            process.kill()  # a process that goes on would be waited for at the end of the block
        assert b"KeyboardInterrupt" in process.stderr.read()


def test_one_key_that_is_heard_twice_is_one_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C of a terminal, which a launcher passes on as well."""
    now = 100.0
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now))
    request = signals.StopRequest()
    request.hear(signal.SIGINT, None)
    now += 0.4
    request.hear(signal.SIGINT, None)
    assert request.exit_code == 130
    now += 0.2
    request.hear(signal.SIGTERM, None)  # no Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        request.hear(signal.SIGINT, None)


def scored(training: Training, *, told: int | None = None, deaf: bool = False) -> Training:
    """Score every pass in ten rounds; in one pass a signal comes in the second of them."""
    scores = {1: 0.1, 2: 0.5, 3: 0.3, 4: 0.2, 5: 0.4}

    def score(epoch: int) -> tuple[float, dict[str, float]]:
        for turn in heeding(range(10)):
            if epoch == told and turn == 2:
                tell()
                if deaf:
                    time.sleep(SLOW)
            assert turn < 4 or epoch != told
        return scores[epoch], {"val_top1": scores[epoch]}

    training.score = score
    return training


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("told", [2, 5])
def test_scoring_that_is_cut_short_is_made_up_for(
    tmp_path: Path, told: int, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a loader that hangs, where it is deaf; also after the very last step."""
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    straight = scored(toy_training(tmp_path / "straight", save_every=100))
    train(straight)
    training = scored(toy_training(tmp_path / "run", save_every=100), told=told, deaf=deaf)
    with pytest.raises(Stopped) as stopped:
        train(training)
    assert stopped.value.exit_code == 143
    found = find_checkpoint(tmp_path / "run")
    assert (found.step, found.meta["unscored"]) == (2 * told, True)
    train(scored(resumed(tmp_path / "run", save_every=100)))
    assert timeless(tmp_path / "run") == timeless(tmp_path / "straight")
    for name in ("last", "best"):
        one, two = (find_checkpoint(tmp_path / run, prefer=name) for run in ("straight", "run"))
        assert (one.step, one.meta["best_score"]) == (two.step, two.meta["best_score"])
        assert "unscored" not in two.meta


def test_nothing_is_heeded_outside_of_a_training() -> None:
    assert list(heeding([1, 2, 3])) == [1, 2, 3]


def test_a_stop_at_a_saved_step_writes_no_second_checkpoint(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=0.5)
    stalling(training, after=3)
    with pytest.raises(Stopped):
        train(training)
    path = find_checkpoint(tmp_path).path
    before = path.stat().st_ino
    training = resumed(tmp_path)
    stalling(training, after=0)
    with pytest.raises(Stopped, match="stopped after step 3"):
        train(training)
    assert find_checkpoint(tmp_path).path == path and path.stat().st_ino == before
    assert "warning" not in said(training)
