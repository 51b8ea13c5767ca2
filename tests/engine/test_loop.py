import gc
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tatscli.draws import Draws
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson
from tatscli.engine.training import Training
from tatscli.errors import DataError, Stopped
from tests.engine.toy import ToyBatch, resumed, said, timeless, toy_training


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def learner_of(training: Training) -> Learner:
    return training.learners["toy"]


def test_ten_steps_equal_five_and_five_resumed(tmp_path: Path) -> None:
    straight = toy_training(tmp_path / "straight")
    train(straight)
    train(toy_training(tmp_path / "halves", max_steps=5))
    again = resumed(tmp_path / "halves")
    assert again.done == 5
    train(again)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    whole = timeless(tmp_path / "straight")
    assert timeless(tmp_path / "halves") == whole
    assert [line["step"] for line in whole] == list(range(1, 11))
    assert [line["seen"] for line in whole] == list(range(10))


def test_the_loss_falls(tmp_path: Path) -> None:
    training = toy_training(tmp_path, epochs=60)
    train(training)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_log_line_has_the_means_of_its_steps(tmp_path: Path) -> None:
    train(toy_training(tmp_path / "each"))
    train(toy_training(tmp_path / "some", log_every=4))
    each, some = lines(tmp_path / "each"), lines(tmp_path / "some")
    assert [line["step"] for line in some] == [4, 8, 10]
    for line, part in zip(some, (each[:4], each[4:8], each[8:]), strict=True):
        for name in ("loss", "grad_norm", "lr", "seen", "replaced"):
            mean = sum(one[name] for one in part) / len(part)
            assert line[name] == pytest.approx(mean, rel=1e-5), name


def test_a_metric_called_loss_is_logged_in_place_of_the_loss(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_steps=1)
    plain = training.step

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        return plain(batch, draws)._replace(metrics={"loss": torch.tensor(0.25)})

    training.step = step
    assert train(training)["loss"] == lines(tmp_path)[0]["loss"] == 0.25


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Plain gradients of the mean over two halves equal those over the whole."""

    def gradient(parts: int) -> torch.Tensor:
        training = toy_training(tmp_path / str(parts), batch_per_device=8 // parts)
        training.model.layers[2].p = 0.0
        whole = toy_training(tmp_path / "data").batches(0)
        batch = next(whole)
        size = 8 // parts

        def batches(start: int) -> Iterator[ToyBatch]:
            while True:
                for i in range(parts):
                    part = slice(i * size, (i + 1) * size)
                    yield ToyBatch(batch.inputs[part], batch.wanted[part], batch.row_B[part])

        def step(given: ToyBatch, draws: Draws) -> Lesson:
            loss = (training.model(given.inputs) - given.wanted).square().mean()
            return Lesson(loss=loss)

        kept = []
        training.batches, training.step = batches, step
        learner_of(training).optimizer.register_step_pre_hook(
            lambda *_: kept.append(training.model.layers[0].weight.grad.clone())
        )
        training.run = training.run.model_copy(update={"max_steps": 1})
        train(training)
        return kept[0]

    torch.testing.assert_close(gradient(1), gradient(4))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_saves_before_it_stops(tmp_path: Path, number: signal.Signals, code: int) -> None:
    training = toy_training(tmp_path, save_every=100, log_every=100)
    plain = training.step

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        if learner_of(training).step == 3:
            os.kill(os.getpid(), number)
        return plain(batch, draws)

    training.step = step
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        train(training)
    assert stopped.value.exit_code == code
    assert find_checkpoint(tmp_path).step == 4
    assert [line["step"] for line in lines(tmp_path)] == [4]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_best_follows_the_score_and_survives_pruning(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=1, keep=2)
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.4}
    training.score = lambda epoch: (scores[epoch], {"val_top1": scores[epoch]})
    result = train(training)
    assert result["best_score"] == 0.9
    assert result["val_top1"] == 0.4
    assert find_checkpoint(tmp_path, prefer="best").step == 4
    assert find_checkpoint(tmp_path).step == 10
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best", "last", "step-0000004", "step-0000008", "step-0000010"]


def test_gradients_are_clipped_where_asked(tmp_path: Path) -> None:
    training = toy_training(tmp_path, clip_grad=0.01)
    norms = []
    learner_of(training).optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.stack([p.grad.norm() for p in training.model.parameters()]).norm().item()
        )
    )
    train(training)
    assert max(norms) <= 0.01 * 1.001
    assert max(line["grad_norm"] for line in lines(tmp_path)) > 0.01


def test_workers_that_die_of_the_same_signal_do_not_lose_the_steps(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=100)
    plain = training.batches

    def batches(start: int) -> Iterator[ToyBatch]:
        for number, batch in enumerate(plain(start)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                raise DataError("a worker died")
            yield batch

    training.batches = batches
    with pytest.raises(Stopped) as stopped:
        train(training)
    assert stopped.value.exit_code == 143
    assert find_checkpoint(tmp_path).step == 3


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The collector as trainings outside of tests find it."""
    monkeypatch.setattr("tatscli.engine.loop.gc", gc)
    gc.unfreeze()
    yield
    gc.freeze()


@pytest.mark.usefixtures("sweeping")
def test_what_lives_as_long_as_the_training_is_spared_by_the_collector(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_steps=3)
    plain, frozen = training.step, list[int]()

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        frozen.append(gc.get_freeze_count())
        return plain(batch, draws)

    training.step = step
    before = gc.get_freeze_count()
    train(training)
    assert frozen[0] == before  # the first step itself may still make what stays
    assert frozen[1] > before + 1000
    assert frozen[2] <= frozen[1]  # once; some of it may be gone
    assert gc.get_freeze_count() == before == 0


@pytest.mark.usefixtures("sweeping")
def test_the_collector_is_as_before_after_a_failure(tmp_path: Path) -> None:
    training = toy_training(tmp_path)
    plain = training.batches

    def batches(start: int) -> Iterator[ToyBatch]:
        for number, batch in enumerate(plain(start)):
            if number == 2:
                raise DataError("broken")
            yield batch

    training.batches = batches
    with pytest.raises(DataError, match="broken"):
        train(training)
    assert gc.get_freeze_count() == 0


def test_a_check_of_the_averages_can_end_the_training(tmp_path: Path) -> None:
    training = toy_training(tmp_path, log_every=2)
    seen: list[float] = []

    def check(means: dict[str, float]) -> None:
        seen.append(means.pop("seen"))
        if len(seen) == 2:
            raise RuntimeError("a fault")

    training.check = check
    with pytest.raises(RuntimeError, match="a fault"):
        train(training)
    assert seen == [0.5, 2.5]
    assert [line["step"] for line in lines(tmp_path)] == [2]
    assert "seen" not in lines(tmp_path)[0]  # what it takes away is not logged
    assert "warning" not in said(training)
