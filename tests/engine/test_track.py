"""Trackers are told what `metrics.jsonl` says, no more, no less and once, and never stop a
training."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import types
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tatscli.draws import Draws
from tatscli.engine import track
from tatscli.engine.distributed import World
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson
from tatscli.engine.track import need_trackers
from tatscli.engine.training import Training
from tatscli.errors import UsageError
from tests.engine.toy import ToyBatch, resumed, said, toy_training
from tests.processes import SLOW

PICTURE = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)

KILLED = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from tatscli.engine.loop import train
from tests.engine.toy import toy_training
training = toy_training(Path(sys.argv[1]), track=sys.argv[2:], save_every=1.5)
training.pictures = lambda epoch: {"pictures/toy": np.full((4, 5, 3), epoch, np.uint8)}
def kill(means):
    while means["seen"] == 4:
        if (training.folder / "checkpoints" / "last").exists():  # on disk, in the background
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)
training.check = kill
train(training)
"""
"""Ten steps, killed in the fifth, which it has taken and not yet told; the checkpoint is of the
third, and a pass ends with the fourth."""


def killed(folder: Path, *trackers: str) -> None:
    words = [sys.executable, "-c", KILLED, str(folder), *trackers]
    done = subprocess.run(words, capture_output=True, text=True, timeout=SLOW)
    assert done.returncode == -9, done.stderr


def pictured(training: Training) -> Training:
    training.pictures = lambda epoch: {"pictures/toy": PICTURE}
    training.score = lambda epoch: (0.1 * epoch, {"val_top1": 0.1 * epoch, "odd": math.nan})
    return training


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every number of `metrics.jsonl` in order, as float32, by name."""
    found = defaultdict(list)
    for line in lines(folder):
        for name, value in line.items():
            if name != "step" and value is not None:
                found[name].append((int(line["step"]), float(np.float32(value))))
    return dict(found)


def shown(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    return accumulator.Reload()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = shown(folder)
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


@pytest.mark.slow
def test_tensorboard_shows_the_numbers_of_the_metrics_after_a_kill_too(tmp_path: Path) -> None:
    killed(tmp_path, "tensorboard")
    before = scalars(tmp_path)["loss"]
    assert [step for step, _ in before] == [1, 2, 3, 4]  # with one that is lost
    time.sleep(1.1)  # event files are read in the order of their names, which tell the second
    training = pictured(resumed(tmp_path, track=["tensorboard"]))
    assert training.done == 3
    train(training)
    found = scalars(tmp_path)
    assert found == series(tmp_path)
    assert [step for step, _ in found["loss"]] == list(range(1, 11))
    assert "odd" not in found and len(found["val_top1"]) == 4
    images = shown(tmp_path).Images("pictures/toy")
    assert [one.step for one in images] == [2, 4, 6, 8, 10]
    assert (images[-1].height, images[-1].width) == (4, 5)


def test_a_tracker_that_comes_later_is_told_what_was_before(tmp_path: Path) -> None:
    train(pictured(toy_training(tmp_path, max_steps=4)))
    assert not (tmp_path / "tensorboard").exists()
    train(pictured(resumed(tmp_path, track=["tensorboard"])))
    assert scalars(tmp_path) == series(tmp_path)


class FakeRun:
    """As much of a wandb run as is used: rows by step, the last of which waits for the next."""

    offline = True

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.rows: dict[int, dict[str, Any]] = {}
        self.finished = False

    def log(self, data: dict[str, Any], *, step: int) -> None:
        assert step >= max(self.rows, default=0)
        self.rows.setdefault(step, {}).update(data)

    def finish(self) -> None:
        self.finished = True


class FakeWandb(types.ModuleType):
    """A stand-in for the package: importing the real one and its service takes seconds."""

    runs: ClassVar[list[FakeRun]]

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs = []  # type: ignore[misc]
        self.Settings = dict
        self.Image = lambda image: image

    def init(self, **options: Any) -> FakeRun:
        self.runs.append(FakeRun(options))
        return self.runs[-1]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def rows(folder: Path, *, first: int = 0) -> dict[int, dict[str, float]]:
    """The numbers of `metrics.jsonl` by step, as wandb keeps them."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for line in lines(folder):
        numbers = {k: v for k, v in line.items() if k != "step" and v is not None}
        if line["step"] >= first:
            found[int(line["step"])].update(numbers)
    return dict(found)


def test_wandb_gets_the_numbers_of_the_metrics_in_one_run(tmp_path: Path, fake: FakeWandb) -> None:
    options = {"track": ["wandb"], "save_every": 1.5}
    train(pictured(toy_training(tmp_path, max_steps=5, **options)))
    train(pictured(resumed(tmp_path, **options)))
    first, second = fake.runs
    assert first.options["id"] == second.options["id"] and first.options["resume"] == "allow"
    assert first.options["dir"] == str(tmp_path) and first.options["name"] == tmp_path.name
    assert first.finished and second.finished
    pictures = {step: row.pop("pictures/toy") for step, row in first.rows.items() if step in (2, 4)}
    assert all(np.array_equal(one, PICTURE) for one in pictures.values())
    for row in second.rows.values():
        row.pop("pictures/toy", None)
    assert {**first.rows, **second.rows} == rows(tmp_path)
    assert min(second.rows) == 5  # the last before is told again: a kill may have lost it


@pytest.mark.parametrize("moment", ["init", "log", "finish"])
def test_a_tracker_that_fails_costs_one_warning(
    tmp_path: Path, fake: FakeWandb, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fails(*given: Any, **options: Any) -> None:
        raise ConnectionError("nobody there\nand more")

    monkeypatch.setattr(fake if moment == "init" else FakeRun, moment, fails)
    training = pictured(toy_training(tmp_path, track=["wandb", "tensorboard"]))
    assert train(training)["steps"] == 10
    words = "warning: `run.track: wandb` failed and is disabled; training continues: "
    assert said(training).count(f"{words}nobody there\n") == 1
    assert "and more" not in said(training)
    assert scalars(tmp_path) == series(tmp_path)  # the other one goes on as well


def test_only_the_main_process_tracks(tmp_path: Path, fake: FakeWandb) -> None:
    training = pictured(toy_training(tmp_path, track=["wandb", "tensorboard"], max_steps=2))
    training.world = World(rank=1)
    train(training)
    assert not fake.runs and not (tmp_path / "tensorboard").exists()


def test_a_training_with_trackers_is_bit_equal_to_one_without(
    tmp_path: Path, fake: FakeWandb
) -> None:
    with_, without = (
        pictured(toy_training(tmp_path / name, track=names))
        for name, names in (("with", ["wandb"]), ("without", []))
    )
    train(with_)
    train(without)
    for name, value in with_.model.state_dict().items():
        assert torch.equal(value, without.model.state_dict()[name]), name


def test_trackers_finish_when_a_training_breaks_off(tmp_path: Path, fake: FakeWandb) -> None:
    training = toy_training(tmp_path, track=["wandb"])
    plain = training.step

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        if training.done == 3:
            raise ZeroDivisionError
        return plain(batch, draws)

    training.step = step
    with pytest.raises(ZeroDivisionError):
        train(training)
    assert fake.runs[0].finished and sorted(fake.runs[0].rows) == [1, 2, 3]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: None if name == "wandb" else name)
    need_trackers(["tensorboard"])
    with pytest.raises(UsageError, match=r"`run\.track: \[wandb\]` needs the package") as refused:
        need_trackers(["tensorboard", "wandb"])
    assert refused.value.hint == "pip install 'tats[track]'"


def offline_history(folder: Path) -> list[dict[str, Any]]:
    """The history of all offline runs in a folder, in order: wandb's log is LevelDB's."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        data, place, record = file.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if (room := -place % 32768) < 7:  # a block ends with zeros where no header fits
                place += room
                continue
            length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
            record += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last piece
                message = wandb_internal_pb2.Record.FromString(record)
                items = message.history.item
                row = {
                    one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items
                }
                found += [row] if row else []
                record = b""
    return found


@pytest.mark.slow
def test_the_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(pictured(toy_training(tmp_path, track=["wandb"], max_steps=5, save_every=1.5)))
    time.sleep(1.1)  # a folder is named by the second
    training = pictured(resumed(tmp_path, track=["wandb"], save_every=1.5))
    train(training)
    assert "failed" not in said(training)
    assert len({one.name[-8:] for one in (tmp_path / "wandb").glob("offline-run-*")}) == 1
    found: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + SLOW
    while not (history := offline_history(tmp_path)) or history[-1]["_step"] < 10:
        assert time.monotonic() < until  # wandb's own process writes it
        time.sleep(0.05)
    for row in history:
        found.setdefault(row["_step"], {}).update(row)
    assert [row["_step"] for row in history] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]
    for step, numbers in rows(tmp_path).items():
        assert {name: found[step][name] for name in numbers} == numbers
    assert found[10]["pictures/toy/_type"] == "image-file"
