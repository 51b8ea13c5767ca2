"""Several processes: they leave together, and what a kill of one of them costs is a resume."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tatscli.engine import signals
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.distributed import World
from tatscli.engine.folders import kept_in
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson
from tatscli.engine.training import Training
from tests.engine.ranks import finish, start
from tests.engine.test_saving import lines
from tests.engine.toy import ToyBatch, toy_training

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")


def two(folder: Path, world: World, **options: object) -> Training:
    """One of the ranks of a toy training, on from its last checkpoint if it has one."""
    training = toy_training(folder, batch_per_device=8 // world.size, world=world, **options)
    return resumed(training)


def resumed(training: Training) -> Training:
    if kept_in(training.folder / "checkpoints"):
        training.restore(find_checkpoint(training.folder))
    return training


def hold(training: Training, at: int, *, seconds: float = 60) -> None:
    """Let the loader hang before the batch of a step."""
    plain = training.batches

    def batches(start: int) -> Iterator[ToyBatch]:
        for count, batch in enumerate(plain(start), start=start):
            if count == at:
                (training.folder / f"held{training.world.rank}").touch()
                time.sleep(seconds)
            yield batch

    training.batches = batches


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("told", "held"), [(0, 1), (1, 0)])
def test_one_rank_is_told_and_one_loader_hangs(tmp_path: Path, told: int, held: int) -> None:
    """Whichever they are, both leave after the same step, with the code of the signal."""

    def work(world: World) -> None:
        training = two(tmp_path, world, save_every=100)
        if world.rank == held:
            hold(training, at=3)
        train(training)

    ranks = start(work, 2, tmp_path)
    wait_for(tmp_path / f"held{held}")
    began = time.monotonic()
    os.kill(ranks[told].pid, signal.SIGUSR1)
    assert finish(ranks) == [138, 138]
    assert time.monotonic() - began < 15
    assert find_checkpoint(tmp_path).step == 3
    for rank in range(2):
        assert "stopped after step 3 of 10" in (tmp_path / f"rank{rank}.txt").read_text()


def test_scoring_that_hangs_on_every_rank_costs_no_step(tmp_path: Path) -> None:
    """They cannot agree any more, and the first saves by itself."""

    def work(world: World) -> None:
        signals.PATIENCE = 0.2
        training = two(tmp_path, world, save_every=100)

        def score(epoch: int) -> None:
            (tmp_path / f"held{world.rank}").touch()
            time.sleep(60)

        training.score = score
        train(training)

    ranks = start(work, 2, tmp_path)
    for rank in range(2):
        wait_for(tmp_path / f"held{rank}")
    for one in ranks:
        os.kill(one.pid, signal.SIGTERM)
    assert finish(ranks) == [143, 143]
    found = find_checkpoint(tmp_path)
    assert (found.step, found.meta["unscored"]) == (2, True)


def heavy(folder: Path, world: World) -> Training:
    """A training whose checkpoints take as long to write as some of its steps."""
    training = toy_training(folder, batch_per_device=4, world=world, epochs=15)
    training.model.register_buffer("ballast", torch.ones(1 << 20))
    return resumed(training)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(lambda world: train(heavy(folder, world)), 2, folder)) == [0, 0]
    return folder


def kill_one(folder: Path, moment: float, rank: int) -> tuple[list[int], int]:
    """Kill a rank so many seconds after the first checkpoint, and wait for the others.

    Returns:
        The exit codes, and how many drafts were left behind.
    """
    ranks = start(lambda world: train(heavy(folder, world)), 2, folder)
    wait_for(folder / "checkpoints" / "last")
    time.sleep(moment)
    os.kill(ranks[rank].pid, signal.SIGKILL)
    codes = finish(ranks)
    return codes, len(list((folder / "checkpoints").glob(".tmp-step*")))


def assert_equal_end(one: Path, two: Path) -> None:
    first, second = find_checkpoint(one), find_checkpoint(two)
    assert first.step == second.step == 30
    for part in ("model", "optimizer"):
        a, b = first.tensors(part), second.tensors(part)
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[name]) for name, value in a.items()), part
    assert [line["loss"] for line in lines(one)] == [line["loss"] for line in lines(two)]


def check_a_kill(tmp_path: Path, undisturbed: Path, moment: float, rank: int) -> tuple[int, int]:
    codes, drafts = kill_one(tmp_path, moment, rank)
    step = find_checkpoint(tmp_path).step
    again = start(lambda world: train(heavy(tmp_path, world)), 2, tmp_path)
    assert finish(again) == [0, 0]
    assert_equal_end(undisturbed, tmp_path)
    assert codes[rank] in (-9, 0)  # 0: it had ended before
    return step, drafts


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_costs_no_more_than_a_resume(
    tmp_path: Path, undisturbed: Path, rank: int
) -> None:
    step, _ = check_a_kill(tmp_path, undisturbed, moment=0.1, rank=rank)
    assert step < 30


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_killed_at_any_of_twenty_moments(tmp_path: Path, undisturbed: Path) -> None:
    """Of either rank, and also while a checkpoint is written."""
    dice = random.Random(20)
    found = []
    for number in range(20):
        moment, rank = dice.uniform(0, 0.6), dice.randrange(2)
        found.append(check_a_kill(tmp_path / str(number), undisturbed, moment, rank))
    assert len({step for step, _ in found}) > 4
    assert any(drafts for _, drafts in found), "none was killed while it wrote"


@pytest.mark.parametrize("sizes", [(2, 1), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_the_number_of_ranks_may_change(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Without dropout, and but for the order of sums, it is the training of one process."""

    def still(folder: Path, world: World, last: int) -> Training:
        training = two(folder, world, max_steps=last)
        training.model.layers[2].p = 0.0
        synced, model = training.synced, training.model

        def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
            return Lesson(loss=((synced or model)(batch.inputs) - batch.wanted).square().mean())

        training.step = step
        return training

    straight = still(tmp_path / "straight", World(), 10)
    train(straight)
    run = tmp_path / "run"
    for size, last in zip(sizes, (5, 10), strict=True):
        ranks = start(lambda world, last=last: train(still(run, world, last)), size, run)
        assert finish(ranks) == [0] * size
    kept = find_checkpoint(run).tensors("model")
    for name, value in straight.model.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
