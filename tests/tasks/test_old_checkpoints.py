"""Checkpoints of format 1, as versions before this one wrote them, are read for every purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.system.system import build_system
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain, start_from

Load = Callable[..., LoadedRecipe]

MASKS = {
    "tats": "mask.base_lr=1e-2",
    "adamae": "mask={kind: adamae, ratio: 0.75, heads: 4}",
    "rollouts": "mask.rollouts=2",
    "tube": "mask={kind: tube, ratio: 0.75}",
}
SHORT = "optim.epochs=3"


def make_old(run: Path) -> Path:
    """Turn a run's last checkpoint into the first format: no guard, batches among the moments."""
    last = (run / "checkpoints" / "last").resolve()
    meta = json.loads((last / "meta.json").read_text())
    assert meta["format"] == 2
    assert meta.pop("draws") == 2  # these were others
    (last / "meta.json").write_text(json.dumps({**meta, "format": 1}))
    masker = last / "masker.safetensors"
    if masker.exists():
        tensors = load_file(masker)
        assert any(name.startswith("guard/") for name in tensors)
        old = {
            f"training/{name}" if name.startswith("waiting/") else name: value
            for name, value in tensors.items()
            if not name.startswith("guard/")
        }
        save_file(old, masker)
    return run


@pytest.fixture
def old(trained: Callable[..., Path]) -> Callable[[str], Path]:
    """A run of three steps, stopped, with a checkpoint of the first format."""

    def make(mask: str) -> Path:
        words = (SHORT, MASKS[mask], "run.max_steps=3")
        return make_old(trained(*words, task=pretrain, out="runs/old"))

    return make


@pytest.mark.parametrize("mask", MASKS)
def test_a_run_goes_on_as_if_nothing_had_happened(
    load: Load, reporter: Reporter, old: Callable[[str], Path], mask: str
) -> None:
    pretrain(load(SHORT, MASKS[mask]), reporter=reporter, out="runs/straight")
    run = old(mask)
    if mask == "rollouts":  # after three steps of two batches each, one is at hand
        names = load_file(run / "checkpoints/last/masker.safetensors")
        assert any(name.startswith("training/waiting/") for name in names)
    result = pretrain(load(SHORT, MASKS[mask]), reporter=reporter, out=run, resume=True)
    assert result["steps"] == 6
    assert reporter.stderr.getvalue().count("that draws masks from the seed differently") == 1
    straight, resumed = find_checkpoint(Path("runs/straight")), find_checkpoint(run)
    assert resumed.meta["format"] == 2
    for part in ("model", "optimizer", *(["masker"] if mask != "tube" else [])):
        first, second = straight.tensors(part), resumed.tensors(part)
        assert first.keys() == second.keys()
        differing = [name for name in first if not torch.equal(first[name], second[name])]
        # The guard takes its first copy anew; it is needed only where a policy collapses.
        assert not [name for name in differing if not name.startswith("guard/")]


def keep_squares(run: Path) -> Path:
    """Keep the mean square of rewards in a run's last checkpoint, where now the variance is."""
    masker = run / "checkpoints/last/masker.safetensors"
    tensors = load_file(masker)
    variance, level = tensors.pop("weights/reward.variance"), tensors["weights/reward.first"]
    save_file(tensors | {"weights/reward.second": variance + level.square()}, masker)
    return run


def test_it_is_looked_at_and_begun_from(load: Load, old: Callable[[str], Path]) -> None:
    run = keep_squares(old("tats"))
    loaded, system = load_system(run)
    assert loaded.checkpoint.meta["format"] == 1
    fresh = build_system(load(MASKS["tats"]).recipe)
    words = start_from(fresh, run)
    assert words.startswith("encoder, head and sampler start from")
    for part in ("autoencoder", "masker"):
        theirs = getattr(system, part).state_dict()
        for name, value in getattr(fresh, part).state_dict().items():
            assert torch.equal(value, theirs[name]), name


def test_it_is_fine_tuned_and_evaluated(
    load: Load, reporter: Reporter, old: Callable[[str], Path]
) -> None:
    run = old("tats")
    assert evaluate(run, reporter=reporter, protocol="knn")["videos"] == 6
    tuned = Path(finetune(load("run.max_steps=2"), reporter=reporter, init=run)["run"])
    expected = evaluate(tuned, reporter=reporter)
    make_old(tuned)
    assert evaluate(tuned, reporter=reporter)["confusion"] == expected["confusion"]
    assert finetune(load(), reporter=reporter, init=None, out=tuned, resume=True)["steps"] == 4


def test_a_format_to_come_is_refused(reporter: Reporter, old: Callable[[str], Path]) -> None:
    run = old("tube")
    path = run / "checkpoints/last/meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    with pytest.raises(CheckpointError, match="this version reads 1 and 2") as refused:
        evaluate(run, reporter=reporter, protocol="knn")
    assert "install the version of tats that wrote it" in str(refused.value.hint)
