"""Gradients that are not finite: the weights stay, the user is told, and too many end the run."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from tatscli.draws import Draws
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson
from tatscli.engine.training import Training
from tatscli.errors import TatsError
from tests.engine.toy import ToyBatch, said, toy_training


def spoil(training: Training, bad: Collection[int], *, by: float = float("nan")) -> None:
    """Make the loss of some steps not finite."""
    plain, learner = training.step, training.learners["toy"]

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        lesson = plain(batch, draws)
        assert lesson.loss is not None
        return lesson._replace(loss=lesson.loss * (by if learner.step in bad else 1.0))

    training.step = step


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_steps_that_are_not_finite_leave_the_weights_alone_and_end_the_run(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_bad_steps=3)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    spoil(training, range(10))
    with pytest.raises(TatsError, match="3 steps in a row, at step 2;") as refused:
        train(training)
    assert "optim.clip_grad" in str(refused.value.hint)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    facts = json.loads((tmp_path / "bad-batch-rank0.json").read_text())
    assert facts == {"step": 2, "seed": 0, "rows": list(range(16, 24))}
    assert "loss" not in lines(tmp_path)[0]  # nothing that could be averaged


@pytest.mark.parametrize("by", [float("inf"), float("nan")])
def test_one_bad_step_is_skipped_and_the_run_goes_on(tmp_path: Path, by: float) -> None:
    training = toy_training(tmp_path)
    spoil(training, [4], by=by)
    assert train(training)["steps"] == 10
    assert all(value.isfinite().all() for value in training.model.state_dict().values())
    assert said(training).count("the gradient is not finite") == 1
    assert "warning: step 4: the gradient is not finite, so the weights stay" in said(training)
    assert not (tmp_path / "bad-batch-rank0.json").exists()


def test_after_a_bad_step_weights_and_moments_are_those_before_it(tmp_path: Path) -> None:
    """As they lie in the checkpoints around it, bit for bit, although nobody waited to know."""
    training = toy_training(tmp_path, log_every=10, keep=20)
    spoil(training, [4])
    train(training)
    before, after = (
        find_checkpoint(tmp_path / "checkpoints" / f"step-{step:07d}") for step in (4, 5)
    )
    for part in ("model", "optimizer"):
        first, second = before.tensors(part), after.tensors(part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part
    moved = find_checkpoint(tmp_path).tensors("model")
    assert any(
        not torch.equal(moved[name], value) for name, value in after.tensors("model").items()
    )


def test_bad_steps_are_counted_across_log_lines(tmp_path: Path) -> None:
    training = toy_training(tmp_path, log_every=4, max_bad_steps=5, save_every=100)
    spoil(training, [2, 3, 4, 5, 6, 7])
    with pytest.raises(TatsError, match="5 steps in a row, at step 6;"):
        train(training)
    facts = json.loads((tmp_path / "bad-batch-rank0.json").read_text())
    assert facts == {"step": 6, "seed": 0, "rows": list(range(48, 56))}
    assert "step 2, 3: the gradient" in said(training)
    assert "step 4, 5, 6, 7: the gradient" in said(training)


def test_good_steps_between_bad_ones_start_the_count_again(tmp_path: Path) -> None:
    training = toy_training(tmp_path, log_every=4, max_bad_steps=3)
    spoil(training, [1, 2, 4, 5, 7, 8])
    assert train(training)["steps"] == 10
    assert not (tmp_path / "bad-batch-rank0.json").exists()


def test_the_rows_are_those_of_every_micro_batch(tmp_path: Path) -> None:
    training = toy_training(tmp_path, batch_per_device=4, max_bad_steps=1, log_every=3)
    spoil(training, [1])
    with pytest.raises(TatsError, match="1 steps in a row, at step 1;"):
        train(training)
    facts = json.loads((tmp_path / "bad-batch-rank0.json").read_text())
    assert facts["rows"] == list(range(8, 16))
