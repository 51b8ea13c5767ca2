"""Bad steps: the weights stay, the user is told, too many end the run, and the last is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import SafetensorError
from torch import Tensor

from tatscli.draws import Draws
from tatscli.engine import bad_steps
from tatscli.engine.bad_steps import BadSteps
from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.engine.loop import train
from tatscli.engine.part import Lesson
from tatscli.engine.training import Training
from tatscli.errors import TatsError
from tatscli.recipe.schema import Run
from tests.engine.test_learner import make
from tests.engine.toy import ToyBatch, resumed, said, toy_training


def spoil(training: Training, bad: Collection[int], *, by: float = float("nan")) -> None:
    """Make the loss of some steps not finite."""
    plain, learner = training.step, training.learners["toy"]

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        lesson = plain(batch, draws)
        assert lesson.loss is not None
        return lesson._replace(loss=lesson.loss * (by if learner.step in bad else 1.0))

    training.step = step


def saved(folder: Path) -> Checkpoint:
    """The bad step that a training has left."""
    return find_checkpoint(folder / "bad-step")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_steps_that_are_not_finite_leave_the_weights_alone_and_end_the_run(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_bad_steps=3)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    spoil(training, range(10))
    with pytest.raises(TatsError, match="3 bad steps in a row, the last at step 3:") as refused:
        train(training)
    assert "optim.clip_grad" in str(refused.value.hint)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    assert "tats replay" in str(refused.value.hint)
    meta = saved(tmp_path).meta
    assert (meta["step"], meta["seed"], meta["rows"]) == (2, 0, [list(range(16, 24))])
    assert (meta["reason"], meta["in_a_row"], meta["limit"]) == ("the loss is not finite", 3, None)
    assert (meta["precision"], meta["device"], meta["kind"]) == ("float32", "cpu", "pretrained")
    assert [line["skipped"] for line in lines(tmp_path)] == [1.0, 1.0, 1.0]
    assert "loss" not in lines(tmp_path)[0]  # nothing that could be averaged


@pytest.mark.parametrize("by", [float("inf"), float("nan")])
def test_one_bad_step_is_skipped_and_the_run_goes_on(tmp_path: Path, by: float) -> None:
    training = toy_training(tmp_path)
    spoil(training, [4], by=by)
    result = train(training)
    assert (result["steps"], result["skipped"]) == (10, 1)
    assert [line["skipped"] for line in lines(tmp_path)] == [0.0] * 4 + [1.0] + [0.0] * 5
    assert all(value.isfinite().all() for value in training.model.state_dict().values())
    assert said(training).count("is not finite") == 1
    assert "warning: step 5: the loss is not finite, so the weights were not updated" in said(
        training
    )
    assert not (tmp_path / "bad-step").exists()


def test_a_gradient_that_is_not_finite_is_told_from_such_a_loss(tmp_path: Path) -> None:
    training = toy_training(tmp_path)
    learner = training.learners["toy"]
    weight = training.model.layers[0].weight
    weight.register_hook(lambda grad: grad * math.nan if learner.step == 4 else grad)
    assert train(training)["skipped"] == 1
    assert "warning: step 5: the gradient is not finite, so the weights were not updated" in said(
        training
    )


def test_a_loss_that_is_not_finite_costs_the_step_although_its_gradient_is(tmp_path: Path) -> None:
    training = toy_training(tmp_path, max_bad_steps=1, save_every=100)
    plain = training.step

    def step(batch: ToyBatch, generator: torch.Generator) -> Lesson:
        lesson = plain(batch, generator)
        assert lesson.loss is not None
        return lesson._replace(loss=lesson.loss + math.inf)

    training.step = step
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    with pytest.raises(TatsError, match="step 1 is bad: the loss is"):
        train(training)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())


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
    with pytest.raises(TatsError, match="5 bad steps in a row, the last at step 7:"):
        train(training)
    meta = saved(tmp_path).meta
    assert (meta["step"], meta["rows"]) == (6, [list(range(48, 56))])
    assert "steps 3, 4: the loss" in said(training)
    assert "steps 5, 6, 7, 8: the loss" in said(training)


def test_good_steps_between_bad_ones_start_the_count_again(tmp_path: Path) -> None:
    training = toy_training(tmp_path, log_every=4, max_bad_steps=3)
    spoil(training, [1, 2, 4, 5, 7, 8])
    assert train(training)["skipped"] == 6
    assert not (tmp_path / "bad-step").exists()


def test_the_rows_are_those_of_every_micro_batch(tmp_path: Path) -> None:
    training = toy_training(tmp_path, batch_per_device=4, max_bad_steps=1, log_every=3)
    spoil(training, [1])
    with pytest.raises(TatsError, match="step 2 is bad:"):
        train(training)
    assert saved(tmp_path).meta["rows"] == [list(range(8, 16))]


def test_what_is_saved_are_the_weights_that_the_bad_step_found(tmp_path: Path) -> None:
    """The steps up to the log line would have been good, and yet nothing moves any more."""
    training = toy_training(tmp_path / "bad", log_every=9, max_bad_steps=2, save_every=100)
    spoil(training, [3, 4])
    with pytest.raises(TatsError, match="2 bad steps in a row, the last at step 5:"):
        train(training)
    twin = toy_training(tmp_path / "twin", max_steps=3)
    train(twin)
    found, wanted = saved(tmp_path / "bad").tensors("model"), twin.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not saved(tmp_path / "bad").has("optimizer")


def test_a_run_that_is_at_its_end_saves_no_checkpoint_of_it(tmp_path: Path) -> None:
    """Between two log lines a checkpoint is due: resuming from it would only end again."""
    training = toy_training(tmp_path, log_every=10, max_bad_steps=3)
    spoil(training, [2, 3, 4])
    with pytest.raises(TatsError, match="the last at step 5"):
        train(training)
    assert find_checkpoint(tmp_path).step == 4
    counted = find_checkpoint(tmp_path).tensors("bad_steps")
    assert (int(counted["in_a_row"]), int(counted["skipped"]), int(counted["good"])) == (2, 2, 2)


def test_bad_steps_are_counted_across_a_resumption(tmp_path: Path) -> None:
    options: dict[str, Any] = {"log_every": 4, "max_bad_steps": 4}
    training = toy_training(tmp_path, **options, max_steps=5)
    spoil(training, [2, 3, 4])
    train(training)
    again = resumed(tmp_path, **options)
    spoil(again, [5])
    with pytest.raises(TatsError, match="4 bad steps in a row, the last at step 6"):
        train(again)
    assert saved(tmp_path).meta["rows"] == [list(range(40, 48))]
    fewer = resumed(tmp_path, log_every=4, max_bad_steps=2)  # it has three behind it already
    spoil(fewer, [])
    assert train(fewer)["skipped"] == 3


def test_a_checkpoint_without_counts_is_resumed(tmp_path: Path) -> None:
    train(toy_training(tmp_path, max_steps=4))
    (find_checkpoint(tmp_path).path / "bad_steps.safetensors").unlink()
    assert train(resumed(tmp_path, skip_above_std=3.0))["skipped"] == 0


class Level:
    """V-JEPA's rule as a plain loop: skip above mean + k deviations of the last good ones."""

    def __init__(self, deviations: float) -> None:
        self.deviations = deviations
        self.known: list[float] = []

    def skips(self, loss: float) -> bool:
        last = torch.tensor(self.known[-bad_steps.WINDOW :], dtype=torch.float64)
        if len(last) >= bad_steps.ENOUGH:
            limit = last.mean() + self.deviations * last.std(correction=0)
            if loss > limit:
                return True
        if not math.isfinite(loss):
            return True
        self.known.append(loss)
        return False


def watched(run: Run) -> BadSteps:
    learner = make()
    learner.left_out = torch.tensor(False)
    return BadSteps([learner], run, torch.device("cpu"))


def judge(watch: BadSteps, loss: float) -> bool:
    skip = watch.judge([torch.tensor(loss)])
    watch.main.left_out = skip
    watch.note(torch.tensor(1.0), [])
    return bool(skip)


def test_losses_far_above_the_last_good_ones_are_skipped_as_by_a_plain_loop() -> None:
    run = Run(skip_above_std=2.5, max_bad_steps=1000)
    watch, rule = watched(run), Level(2.5)
    generator = torch.Generator().manual_seed(0)
    losses = 1 + 0.1 * torch.randn(700, generator=generator) - torch.arange(700) / 2000
    losses[::41] += 1.0
    losses[350] = math.nan
    found = [judge(watch, loss) for loss in losses.tolist()]
    assert found == [rule.skips(loss) for loss in losses.tolist()]
    assert not any(found[:100])  # no level yet
    assert sum(found) == watch.skipped > 14


def test_the_level_of_the_losses_is_resumed_to_the_bit() -> None:
    run = Run(skip_above_std=2.0)
    first, second = watched(run), watched(run)
    generator = torch.Generator().manual_seed(1)
    losses = torch.randn(420, generator=generator).tolist()
    assert first.tensors() == {}
    for loss in losses[:350]:
        judge(first, loss)
    second.load(first.tensors())
    for loss in losses[350:]:
        assert judge(first, loss) == judge(second, loss)
    for name, value in first.tensors().items():
        assert torch.equal(value, second.tensors()[name]), name
    other = watched(Run(skip_above_std=None))
    other.load(first.tensors())
    assert other.tensors()["losses"].numel() == 0 and not judge(other, 1e9)


def test_a_training_skips_a_loss_that_is_too_high(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_steps, "ENOUGH", 3)
    training = toy_training(tmp_path, skip_above_std=8.0, max_bad_steps=2, log_every=5)
    spoil(training, [5, 8, 9], by=1e4)
    with pytest.raises(
        TatsError, match="2 bad steps in a row, the last at step 10: the loss is far"
    ):
        train(training)
    assert "step 6: the loss is far above recent losses, so the weights were not updated" in said(
        training
    )
    meta = saved(tmp_path).meta
    assert meta["reason"] == "the loss is far above recent losses"
    assert 0 < meta["limit"] < 1e3


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["ours", "of safetensors"],
)
def test_a_full_disk_does_not_hide_why_the_run_ended(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    training = toy_training(tmp_path, max_bad_steps=1)
    spoil(training, [0])
    monkeypatch.setattr("tatscli.engine.bad_batch.save_bad_step", full)
    with pytest.raises(TatsError, match="cannot be saved: No space left on device"):
        train(training)
    assert not (tmp_path / "bad-step").exists()


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    watch = watched(Run(skip_above_std=2.0))
    losses = torch.randn(130, generator=torch.Generator().manual_seed(rank)).tolist()
    losses[120] = math.inf if rank else 0.0  # one rank's trouble is everybody's
    skipped: Tensor = torch.tensor([judge(watch, loss) for loss in losses])
    torch.save({"which": skipped, **watch.tensors()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_skip_the_same_steps(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["which"][120] and not first["which"][:100].any()
