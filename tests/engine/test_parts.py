"""Several learners in one training, and parts of any kind that are saved, resumed and told."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tatscli.draws import Draws
from tatscli.engine.checkpoint import find_checkpoint, restore_part
from tatscli.engine.learner import Learner
from tatscli.engine.loop import train
from tatscli.engine.optim import build_optimizer
from tatscli.engine.part import Lesson, Weights, under
from tatscli.engine.training import Training
from tatscli.errors import CheckpointError
from tatscli.recipe.schema import Optim
from tests.engine.toy import ToyBatch, said, toy_training


class Average:
    """A running copy of a module's weights, as of a teacher; speaks up every third step."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.copy = {name: one.clone() for name, one in module.state_dict().items()}
        self.told: list[tuple[int, int]] = []

    def tensors(self) -> dict[str, Tensor]:
        return self.copy

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, one in self.copy.items():
            one.copy_(tensors[name])

    def after_step(self, done: int, total: int) -> Lesson:
        self.told.append((done, total))
        for name, one in self.module.state_dict().items():
            self.copy[name] = self.copy[name].lerp(one, 0.1)
        notices = ["the copy is late"] if done % 3 == 0 else []
        return Lesson({"copied": float(done), "norm": self.copy["layers.0.bias"].norm()}, notices)


class Nothing:
    """A part without a state, as a fixed mask is one."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        raise AssertionError("there is nothing to load")

    def after_step(self, done: int, total: int) -> Lesson:
        return Lesson()


def make(folder: Path, *, rival_lr: float = 0.02, **options: object) -> Training:
    """The toy beside a second learner with its own rate and clipping, and two more parts."""
    training = toy_training(folder, **options)  # type: ignore[arg-type]
    torch.manual_seed(5)
    rival = nn.Linear(6, 2)
    learner = Learner(
        rival, build_optimizer(rival, Optim()), lr=lambda step: rival_lr, clip_grad=0.05
    )
    plain = training.step

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        lesson = plain(batch, draws)
        assert lesson.loss is not None
        other = (rival(batch.inputs) - batch.wanted).square().mean()
        metrics = {**lesson.metrics, "loss": lesson.loss, "loss/rival": other}
        return Lesson(metrics, ["a rival learns"], lesson.loss + other)

    training.step = step
    training.learners = {**training.learners, "rival": learner}
    training.parts = {
        **training.parts,
        "rival": Weights(rival),
        "rival_optimizer": learner,
        "average": Average(training.model),
        "nothing": Nothing(),
    }
    return training


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(training: Training) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value.clone()
        for name, part in training.parts.items()
        for key, value in part.tensors().items()
    }


def test_each_learner_goes_its_own_way(tmp_path: Path) -> None:
    """The model learns, bit for bit, as it does alone; the other has its own rate and norm."""
    alone, both = toy_training(tmp_path / "alone"), make(tmp_path / "both")
    train(alone)
    train(both)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, both.model.state_dict()[name]), name
    for one, other in zip(lines(tmp_path / "alone"), lines(tmp_path / "both"), strict=True):
        for name in ("loss", "lr", "grad_norm", "seen"):
            assert one[name] == other[name], name
        assert other["rival_lr"] == pytest.approx(0.02)
        assert other["rival_grad_norm"] > 0.05  # before it is clipped
        assert other["rival_grad_norm"] != other["grad_norm"]
    moved = both.learners["rival"].module.state_dict()["weight"]
    fresh = make(tmp_path / "fresh").learners["rival"].module.state_dict()["weight"]
    assert 0.05 < (moved - fresh).abs().max() < 0.21  # ten steps of at most its rate


def test_a_second_learner_without_gradients_waits(tmp_path: Path) -> None:
    training = make(tmp_path)
    before = state_of(training)
    plain = training.step

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        return Lesson(loss=plain(batch, draws).metrics["loss"])  # type: ignore[arg-type]

    training.step = step
    train(training)
    after = state_of(training)
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("rival/"))
    assert not torch.equal(before["model/layers.0.weight"], after["model/layers.0.weight"])
    assert "rival_grad_norm" not in lines(tmp_path)[0]
    assert lines(tmp_path)[0]["rival_lr"] == pytest.approx(0.02)


def test_trouble_of_a_second_learner_is_not_the_models(tmp_path: Path) -> None:
    """Its step is left out and counted; the training is not refused for it."""
    alone, both = toy_training(tmp_path / "alone"), make(tmp_path / "both", max_bad_steps=1)
    rival, plain, seen = both.learners["rival"], both.step, list[Tensor]()

    def step(batch: ToyBatch, draws: Draws) -> Lesson:
        seen.append(rival.module.weight.detach().clone())  # type: ignore[operator]
        lesson = plain(batch, draws)
        assert lesson.loss is not None
        spoiled = rival.module(batch.inputs).mean() * torch.nan
        return lesson._replace(loss=lesson.loss + spoiled) if rival.step == 4 else lesson

    both.step = step
    train(alone)
    train(both)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(value, both.model.state_dict()[name]), name
    stood_still = [torch.equal(before, after) for before, after in pairwise(seen)]
    assert [number for number, still in enumerate(stood_still) if still] == [4]
    assert [line["rival_skipped"] for line in lines(tmp_path / "both")] == [0] * 4 + [1] + [0] * 5
    assert [line["skipped"] for line in lines(tmp_path / "both")] == [0] * 10


def test_every_part_is_saved_and_resumed_alike(tmp_path: Path) -> None:
    straight = make(tmp_path / "straight")
    train(straight)
    train(make(tmp_path / "halves", max_steps=5))
    checkpoint = find_checkpoint(tmp_path / "halves")
    assert {path.stem for path in checkpoint.path.glob("*.safetensors")} == {
        "model",
        "optimizer",
        "rival",
        "rival_optimizer",
        "average",
        "bad_steps",
    }
    again = make(tmp_path / "halves")
    again.restore(checkpoint)
    assert any(key.startswith("rival_optimizer/") for key in state_of(again))
    train(again)
    first, second = state_of(straight), state_of(again)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_parts_hear_of_every_step_and_may_speak(tmp_path: Path) -> None:
    training = make(tmp_path)
    train(training)
    average = training.parts["average"]
    assert isinstance(average, Average)
    assert average.told == [(done, 10) for done in range(1, 11)]
    assert [line["copied"] for line in lines(tmp_path)] == list(range(1, 11))
    norms = [line["norm"] for line in lines(tmp_path)]
    assert norms[-1] == pytest.approx(float(average.copy["layers.0.bias"].norm()))
    for words in ("warning: the copy is late", "warning: a rival learns"):
        assert said(training).count(words) == 1


def test_a_part_that_does_not_fit_names_its_file(tmp_path: Path) -> None:
    training = make(tmp_path, max_steps=1)
    train(training)
    checkpoint = find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"rival\.safetensors` does not fit the recipe"):
        restore_part("rival", Weights(nn.Linear(7, 2)), checkpoint)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors` does not fit"):
        restore_part("optimizer", training.learners["rival"], checkpoint)
    with pytest.raises(CheckpointError, match=r"cannot read .*missing\.safetensors"):
        restore_part("missing", Weights(nn.Linear(7, 2)), checkpoint)
    restore_part("nothing", Nothing(), checkpoint)


def test_names_under_a_prefix() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    assert under("a/", {"a/b": one, "ab": other, "b/a/c": other}) == {"b": one}
