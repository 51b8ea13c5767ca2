"""A teacher in a training: SALT's two stages, from the command line to the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.errors import CheckpointError
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.pretrain import pretrain
from tests.teaching import transformers_network

Load = Callable[..., LoadedRecipe]

SMALL = ("mask.kind=tube", "model={width: 32, depth: 1, heads: 2, patch: 8}")
SALT = "targets=[{kind: teacher, run: runs/first}]"


@pytest.fixture
def first(load: Load, reporter: Reporter) -> Path:
    """A run of pixels, which teaches."""
    wide = (*SMALL, "model.width=48", "run.max_steps=2")
    return Path(pretrain(load(*wide), reporter=reporter, out="runs/first")["run"])


def meta_of(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "checkpoints/last/meta.json").read_text())


def test_a_run_teaches_another_which_names_it(load: Load, reporter: Reporter, first: Path) -> None:
    result = pretrain(load(*SMALL, SALT), reporter=reporter, out="runs/second")
    lines = Path("runs/second/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss/teacher"] for line in lines]
    assert losses[-1] < losses[0] and result["loss"] == result["loss/teacher"]
    last = (first / "checkpoints/last").resolve()
    digest = hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()
    assert meta_of("runs/second")["frozen"] == [{"path": str(last), "sha256": digest}]
    files = {path.stem for path in Path("runs/second/checkpoints/last").glob("*.safetensors")}
    assert files == {"model", "optimizer", "bad_steps"}
    assert [one.digest for one in load_system("runs/second")[1].frozen()] == [digest]


def test_it_goes_on_bit_for_bit_with_its_teacher_alone(
    load: Load, reporter: Reporter, first: Path
) -> None:
    pretrain(load(*SMALL, SALT), reporter=reporter, out="runs/straight")
    pretrain(load(*SMALL, SALT, "run.max_steps=4"), reporter=reporter, out="runs/halves")
    pretrain(load(*SMALL, SALT), reporter=reporter, out="runs/halves", resume=True)
    one, other = (
        load_file(f"runs/{name}/checkpoints/last/model.safetensors")
        for name in ("straight", "halves")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Trained on, the teacher is another one.
    wide = (*SMALL, "model.width=48", "run.max_steps=3")
    pretrain(load(*wide), reporter=reporter, out=first, resume=True)
    with pytest.raises(CheckpointError, match="was trained with other frozen networks"):
        load_system("runs/halves")
    with pytest.raises(CheckpointError, match="was trained with other frozen networks"):
        pretrain(load(*SMALL, SALT), reporter=reporter, out="runs/halves", resume=True)


@pytest.mark.slow
def test_a_folder_of_transformers_teaches_and_is_checked(load: Load, reporter: Reporter) -> None:
    def write(seed: int) -> str:
        network = transformers_network("dinov3_vit", seed=seed)
        network.save_pretrained("dino")
        return hashlib.sha256(Path("dino/model.safetensors").read_bytes()).hexdigest()

    digest = write(seed=1)
    target = "targets=[{kind: teacher, transformers: dino, weight: 0.5}, {kind: pixels}]"
    short = load(*SMALL, target, "run.max_steps=1")
    pretrain(short, reporter=reporter, out="runs/dino")
    assert meta_of("runs/dino")["frozen"] == [{"path": "dino", "sha256": digest}]
    assert write(seed=2) != digest
    with pytest.raises(CheckpointError, match="was trained with other frozen networks"):
        load_system("runs/dino")


def test_a_teacher_that_does_not_fit_costs_nothing(
    load: Load, first: Path, recipe_file: Path, cli: Callable[..., Any]
) -> None:
    words = ["pretrain", recipe_file, *SMALL, SALT, "data.frames=4", "--out", "runs/second"]
    outcome = cli(*words)
    assert outcome.code == 2
    assert "has a grid of 4 x 4 x 4 tokens" in outcome.stderr.replace("\n", " ")
    assert "and the recipe one of 2 x 4 x 4" in outcome.stderr.replace("\n", " ")
    assert not Path("runs/second").exists()
    planned = cli("pretrain", recipe_file, *SMALL, SALT, "--dry-run", "--json").json()
    assert planned["gflops_per_clip"]["targets"] > planned["gflops_per_clip"]["encoder"]
