import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.loop import train
from tatscli.errors import DataError, Stopped, TatsError
from tests.engine.toy import ToyBatch, resumed, toy_training


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_ten_steps_equal_five_and_five_resumed(tmp_path: Path) -> None:
    straight = toy_training(tmp_path / "straight")
    train(straight)
    train(toy_training(tmp_path / "halves", max_steps=5))
    again = resumed(tmp_path / "halves")
    assert again.done == 5
    train(again)
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    timeless = [
        [{k: v for k, v in line.items() if "seconds" not in k and k != "wall"} for line in run]
        for run in (lines(tmp_path / "straight"), lines(tmp_path / "halves"))
    ]
    assert timeless[0] == timeless[1]
    assert [line["step"] for line in timeless[0]] == list(range(1, 11))


def test_the_loss_falls(tmp_path: Path) -> None:
    training = toy_training(tmp_path, epochs=60)
    train(training)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Plain gradients of the mean over two halves equal those over the whole."""

    def gradient(parts: int) -> torch.Tensor:
        training = toy_training(tmp_path / str(parts), batch_per_device=8 // parts)
        training.model.layers[2].p = 0.0
        whole = toy_training(tmp_path / "data").batches(0)
        batch = next(whole)
        size = 8 // parts

        def batches(start: int):
            while True:
                for i in range(parts):
                    part = slice(i * size, (i + 1) * size)
                    yield ToyBatch(batch.inputs[part], batch.wanted[part], batch.row_B[part])

        def step(given: ToyBatch, generator: torch.Generator, done: int):
            return (training.model(given.inputs) - given.wanted).square().mean(), {}

        kept = []
        training.batches, training.step = batches, step
        training.optimizer.register_step_pre_hook(
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
    training = toy_training(tmp_path, save_every=100)
    plain = training.step

    def step(batch: ToyBatch, generator: torch.Generator, done: int):
        if done == 3:
            os.kill(os.getpid(), number)
        return plain(batch, generator, done)

    training.step = step
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        train(training)
    assert stopped.value.exit_code == code
    assert find_checkpoint(tmp_path).step == 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_steps_that_are_not_finite_leave_the_weights_alone_and_end_the_run(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_bad_steps=3)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    plain = training.step

    def step(batch: ToyBatch, generator: torch.Generator, done: int):
        loss, metrics = plain(batch, generator, done)
        return loss * float("nan"), metrics

    training.step = step
    with pytest.raises(TatsError, match="3 steps in a row"):
        train(training)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    facts = json.loads((tmp_path / "bad-batch-rank0.json").read_text())
    assert facts == {"step": 2, "seed": 0, "rows": list(range(8))}
    assert "loss" not in lines(tmp_path)[0]  # nothing that could be averaged


def test_one_bad_step_is_skipped_and_the_run_goes_on(tmp_path: Path) -> None:
    training = toy_training(tmp_path)
    plain = training.step

    def step(batch: ToyBatch, generator: torch.Generator, done: int):
        loss, metrics = plain(batch, generator, done)
        return loss * (float("inf") if done == 4 else 1.0), metrics

    training.step = step
    assert train(training)["steps"] == 10
    assert all(value.isfinite().all() for value in training.model.state_dict().values())


def test_best_follows_the_score_and_survives_pruning(tmp_path: Path) -> None:
    training = toy_training(tmp_path, save_every=1, keep=1)
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.4}
    training.score = lambda epoch: (scores[epoch], {"val_top1": scores[epoch]})
    result = train(training)
    assert result["best_score"] == 0.9
    assert result["val_top1"] == 0.4
    assert find_checkpoint(tmp_path, prefer="best").step == 4
    assert find_checkpoint(tmp_path).step == 10
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["best", "last", "step-0000004", "step-0000010"]


def test_gradients_are_clipped_where_asked(tmp_path: Path) -> None:
    training = toy_training(tmp_path, clip_grad=0.01)
    norms = []
    training.optimizer.register_step_pre_hook(
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

    def batches(start: int):
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
