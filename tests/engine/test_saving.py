"""Checkpoints written beside the training: what is in them, and what happens where they fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tatscli.engine import keeping, saving
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.loop import train
from tatscli.engine.metrics import MetricsLog
from tatscli.engine.part import Lesson
from tatscli.engine.saving import Saver
from tatscli.errors import CheckpointError, Stopped
from tests.engine.toy import ToyBatch, resumed, said, toy_training
from tests.processes import SLOW


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes a while."""
    plain = saving.save_checkpoint

    def save(*given: Any, **named: Any) -> Path:
        time.sleep(0.3)
        return plain(*given, **named)

    monkeypatch.setattr(saving, "save_checkpoint", save)


@pytest.fixture
def waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes 0.3 s of a clock of its own, and until training waits for it."""
    plain, wait, asked, now = saving.save_checkpoint, saving.Saver.wait, threading.Event(), 0.0

    def save(*given: Any, **named: Any) -> Path:
        nonlocal now
        assert asked.wait(SLOW)
        asked.clear()
        now += 0.3
        return plain(*given, **named)

    def waiting(self: saving.Saver) -> None:
        if self._thread is not None:
            asked.set()
        wait(self)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    monkeypatch.setattr(saving.Saver, "wait", waiting)
    monkeypatch.setattr(saving, "time", SimpleNamespace(perf_counter=lambda: now))


@pytest.mark.usefixtures("waited_for")
def test_a_checkpoint_holds_its_own_step_though_training_goes_on(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=2, keep=9)
    at, plain = dict[int, torch.Tensor](), training.step

    def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
        at[training.done] = training.model.layers[0].weight.detach().clone()
        return plain(batch, generator)

    training.step = step
    train(training)
    for number in (4, 8):
        kept = find_checkpoint(tmp_path / "checkpoints" / f"step-{number:07d}")
        assert torch.equal(kept.tensors("model")["layers.0.weight"], at[number])
        assert not torch.equal(at[number], at[number - 1])
    waits = {
        int(one["step"]): one["save_seconds"] for one in lines(tmp_path) if "save_seconds" in one
    }
    # Told in the line after the one it was saved at; the second had to wait for the first.
    assert waits == {9: pytest.approx(0.3)}


@pytest.mark.usefixtures("slow")
def test_the_last_checkpoint_is_on_disk_when_training_ends_or_stops(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=100)
    train(training)
    assert find_checkpoint(tmp_path).step == 10
    training = toy_training(tmp_path / "stopped", save_every=100)
    plain = training.step
    training.step = lambda *given: (os.kill(os.getpid(), signal.SIGTERM), plain(*given))[1]
    with pytest.raises(Stopped):
        train(training)
    assert find_checkpoint(tmp_path / "stopped").step == 1
    training = toy_training(tmp_path / "failed", save_every=0.5)
    training.check = lambda means: 1 / (training.done - 3)
    with pytest.raises(ZeroDivisionError):
        train(training)
    assert find_checkpoint(tmp_path / "failed").step == 2


def full_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the disk be full once so many checkpoints are written: half of the next one fits."""
    plain, written = keeping.publish, list[Path]()

    def publish(draft: Path, final: Path) -> None:
        if len(written) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(final)
        plain(draft, final)

    monkeypatch.setattr(keeping, "publish", publish)


def test_a_full_disk_ends_the_training_with_one_line_and_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_after(monkeypatch, 2)
    with pytest.raises(CheckpointError) as raised:
        train(toy_training(tmp_path, save_every=1))
    message = raised.value.message
    assert message.startswith("the disk is full: the checkpoint `")
    assert "step-0000006` takes 1.05 MB, and " in message and "are free" in message
    assert "continue with `--resume` from `step-0000004`" in str(raised.value.hint)
    names = sorted(one.name for one in (tmp_path / "checkpoints").iterdir())
    assert names == ["last", "step-0000002", "step-0000004"]  # no draft
    monkeypatch.undo()
    assert train(resumed(tmp_path))["steps"] == 10


def test_room_is_looked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: pytest.fail("written"))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"takes 1\.05 MB, and 0\.001 MB are free$") as raised:
        train(toy_training(tmp_path, save_every=1))
    assert "there is no earlier checkpoint" in str(raised.value.hint)
    assert not list((tmp_path / "checkpoints").iterdir())


LIMITED = """
import resource, signal, sys
from pathlib import Path
from tatscli.engine.loop import train
from tatscli.errors import CheckpointError
from tests.engine.toy import toy_training

training = toy_training(Path(sys.argv[1]), save_every=1, log_every=100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    train(training)
except CheckpointError as error:
    print(error.message)
"""


def test_a_write_that_the_system_cuts_short_is_a_full_disk(tmp_path: Path) -> None:
    """A real one, by a limit on the size of files; safetensors tells of it in words alone."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "the disk is full: the checkpoint" in done.stdout, done.stderr
    assert "a quota or limit leaves less" in done.stdout
    assert not list((tmp_path / "checkpoints").iterdir())


def test_other_faults_of_the_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(draft: Path, final: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(keeping, "publish", publish)
    with pytest.raises(CheckpointError, match="cannot be written: Input/output error"):
        train(toy_training(tmp_path, save_every=1))


def test_where_memory_is_short_training_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "free_memory", lambda: 1000)
    training = toy_training(tmp_path, save_every=1)
    train(training)
    assert "training waits while a checkpoint is written: a copy of" in said(training)
    assert find_checkpoint(tmp_path).step == 10
    straight = toy_training(tmp_path / "beside")
    monkeypatch.undo()
    train(straight)
    for name, value in find_checkpoint(tmp_path).tensors("model").items():
        assert torch.equal(value, straight.model.state_dict()[name])


def test_memory_that_is_pinned_for_copies_already_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(toy_training(tmp_path))
    state = {"model": {"weight": torch.zeros(100)}}
    monkeypatch.setattr(saving, "free_memory", lambda: 500)
    assert not saver._has_room(state)
    saver._pinned["model", "weight"] = torch.zeros(100)
    assert saver._has_room(state)


def test_metrics_that_cannot_be_written_name_their_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", step=0)
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        log.write({"step": 1})
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.filename == str(tmp_path / "metrics.jsonl")
