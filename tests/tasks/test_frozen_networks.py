"""A target with a frozen network in it: trained against, named in the checkpoint, and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tatscli.console import Reporter
from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import CheckpointError
from tatscli.nn.frozen import Frozen
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.system.system import build_system
from tatscli.targets import TARGETS
from tatscli.targets.pixels import PixelTarget
from tatscli.tasks.pretrain import pretrain

Load = Callable[..., LoadedRecipe]


def write_teacher(path: Path, seed: int) -> str:
    """Write the weights of a teacher; return their digest."""
    torch.manual_seed(seed)
    save_file({"weight": torch.randn(7, 384)}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TeacherTarget(PixelTarget):
    """Predicts what a frozen linear map makes of the pixels."""

    path = Path("teacher.safetensors")

    def __init__(self, config: Any, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        self.predicts = 7
        linear = nn.Linear(3 * form.pixels, 7, bias=False)
        linear.load_state_dict(load_file(self.path))
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        self.teacher = Frozen(linear, path=str(self.path), digest=digest)

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        answer: Tensor = self.teacher(clip.cubes(index_BM))
        return answer


@pytest.fixture
def teach(load: Load, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedRecipe]:
    """The tiny recipe with such a target in place of pixels."""
    monkeypatch.setitem(TARGETS, "pixels", TeacherTarget)
    write_teacher(TeacherTarget.path, seed=1)
    return lambda *changes: load("mask.kind=tube", *changes)


def meta_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / "last" / "meta.json").read_text())


def test_a_checkpoint_names_the_network_and_has_no_copy(teach: Load, reporter: Reporter) -> None:
    digest = hashlib.sha256(TeacherTarget.path.read_bytes()).hexdigest()
    run = Path(pretrain(teach("run.max_steps=2"), reporter=reporter)["run"])
    assert meta_of(run)["frozen"] == [{"path": "teacher.safetensors", "sha256": digest}]
    assert {path.stem for path in (run / "checkpoints/last").glob("*.safetensors")} == {
        "model",
        "optimizer",
        "bad_steps",
    }
    names = load_file(run / "checkpoints/last/model.safetensors")
    assert not [name for name in names if "teacher" in name]
    _, system = load_system(run)
    assert [one.digest for one in system.frozen()] == [digest]


def test_without_one_nothing_is_named(load: Load, reporter: Reporter) -> None:
    run = Path(pretrain(load("run.max_steps=1"), reporter=reporter)["run"])
    assert "frozen" not in meta_of(run)
    assert load_system(run)[1].frozen() == []


def test_it_is_taught_and_goes_on_bit_for_bit(teach: Load, reporter: Reporter) -> None:
    pretrain(teach(), reporter=reporter, out="runs/straight")
    lines = Path("runs/straight/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.95 * losses[0]
    pretrain(teach("run.max_steps=4"), reporter=reporter, out="runs/halves")
    pretrain(teach(), reporter=reporter, out="runs/halves", resume=True)
    first, second = (
        load_file(f"runs/{name}/checkpoints/last/model.safetensors")
        for name in ("straight", "halves")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_moves_with_the_system_and_is_counted_nowhere(teach: Load) -> None:
    system = build_system(teach().recipe)
    (frozen,) = system.frozen()
    assert [len(list(part.parameters())) for part in system.targets.values()] == [0]
    system.to("meta")
    assert {one.device.type for one in frozen._network[0].parameters()} == {"meta"}
    assert not frozen._network[0].training


def test_the_same_weights_may_lie_elsewhere(
    teach: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain(teach("run.max_steps=1"), reporter=reporter)["run"]
    moved = Path("moved.safetensors")
    TeacherTarget.path.rename(moved)
    monkeypatch.setattr(TeacherTarget, "path", moved)
    assert load_system(run)[1].frozen()[0].path == "moved.safetensors"
    result = pretrain(teach("run.max_steps=2"), reporter=reporter, out=run, resume=True)
    assert result["steps"] == 2
    assert meta_of(Path(run))["frozen"][0]["path"] == "moved.safetensors"


def test_other_weights_are_refused_when_looking(teach: Load, reporter: Reporter) -> None:
    run = pretrain(teach("run.max_steps=1"), reporter=reporter)["run"]
    then = meta_of(Path(run))["frozen"][0]["sha256"]
    now = write_teacher(TeacherTarget.path, seed=2)
    with pytest.raises(CheckpointError, match="was trained with other frozen networks") as refused:
        load_system(run)
    assert then[:12] in str(refused.value) and now[:12] in str(refused.value)
    assert refused.value.hint == "give the files it was trained with"


def test_other_weights_are_refused_when_going_on(teach: Load, reporter: Reporter) -> None:
    """Half of the run would have been taught by another."""
    run = pretrain(teach("run.max_steps=1"), reporter=reporter)["run"]
    write_teacher(TeacherTarget.path, seed=2)
    with pytest.raises(CheckpointError, match="was trained with other frozen networks"):
        pretrain(teach("run.max_steps=2"), reporter=reporter, out=run, resume=True)
    # To begin anew from those weights is another training, and allowed.
    again = teach("run.max_steps=1")
    assert pretrain(again, reporter=reporter, out="runs/new", init=run)["steps"] == 1
