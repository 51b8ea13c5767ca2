"""The `ema` target in a training: kept, resumed, begun with, alike on all ranks, and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tatscli.console import Reporter
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.pretrain import pretrain

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[..., LoadedRecipe]

EMA = ("mask.kind=tube", "model={width: 32, depth: 1, heads: 2, patch: 8}",
       "targets=[{kind: pixels}, {kind: ema, momentum: 0.9}]")  # fmt: skip


def kept(run: str | Path, part: str) -> dict[str, Tensor]:
    return load_file(Path(run) / f"checkpoints/last/{part}.safetensors")


def assert_equal(one: str, other: str, *parts: str) -> None:
    for part in parts:
        first, second = kept(one, part), kept(other, part)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert torch.equal(value, second[name]), (part, name)


def test_it_is_kept_and_goes_on_bit_for_bit(load: Load, reporter: Reporter) -> None:
    pretrain(load(*EMA), reporter=reporter, out="runs/straight")
    pretrain(load(*EMA, "run.max_steps=4"), reporter=reporter, out="runs/halves")
    pretrain(load(*EMA), reporter=reporter, out="runs/halves", resume=True)
    assert_equal("runs/straight", "runs/halves", "model", "targets", "optimizer")
    slow, quick = kept("runs/straight", "targets"), kept("runs/straight", "model")
    name = "patch_embed.proj.weight"
    away = (slow[f"ema/{name}"] - quick[f"encoder.{name}"]).abs().max()
    assert away > 1e-4
    written = Path("runs/straight/metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in written]
    assert lines[0]["ema/momentum"] == pytest.approx(0.9)
    assert lines[-1]["ema/momentum"] == pytest.approx(1.0)
    for line in lines:
        assert line["loss"] == pytest.approx(line["loss/pixels"] + line["loss/ema"], rel=1e-4)
        assert line["ema/spread"] > 0
    # What pictures draw is the error against the average as it was.
    _, system = load_system("runs/straight")
    for name, value in system.targets["ema"].tensors().items():
        assert torch.equal(value, slow[f"ema/{name}"]), name


def test_without_a_state_there_is_no_file(load: Load, reporter: Reporter) -> None:
    run = pretrain(load("mask.kind=tube", "run.max_steps=1"), reporter=reporter)["run"]
    assert not (Path(run) / "checkpoints/last/targets.safetensors").exists()


def test_it_begins_with_the_encoder_of_another_run(load: Load, reporter: Reporter) -> None:
    pretrain(load(*EMA), reporter=reporter, out="runs/first")
    still = (
        *EMA,
        "run.max_steps=1",
        "optim.base_lr=1e-12",
        "optim.min_lr=0",
        "optim.warmup_epochs=0",
    )
    pretrain(load(*still), reporter=reporter, out="runs/second", init="runs/first")
    before, after = kept("runs/first", "model"), kept("runs/second", "targets")
    for name, value in after.items():
        encoder = before[name.replace("ema/", "encoder.")]
        torch.testing.assert_close(value, encoder, atol=1e-6, rtol=0)


RANKS = """
import os, sys
from safetensors.torch import save_file
from tatscli.console import Reporter
from tatscli.recipe.load import load_recipe
from tatscli.tasks import pretrain as task

made = []
build = task.Pretraining.build
task.Pretraining.build = lambda self, *a, **k: (build(self, *a, **k), made.append(self.system))
task.pretrain(load_recipe("tiny.yaml", sys.argv[1:]), reporter=Reporter(), out="runs/both")
target = made[0].targets["ema"]
weights = {f"slow/{n}": v for n, v in target.tensors().items()}
weights |= {f"quick/{n}": v for n, v in made[0].encoder.state_dict().items()}
save_file(weights, f"rank{os.environ['RANK']}.safetensors")
"""


@pytest.mark.slow
def test_two_ranks_average_alike(recipe_file: Path) -> None:
    Path("ranks.py").write_text(RANKS)
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29673"]
    both = subprocess.run(
        [sys.executable, *words, "ranks.py", *EMA, "run.max_steps=3", "optim.batch_per_device=3"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    assert both.returncode == 0, both.stderr
    first, second = (load_file(f"rank{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert not torch.equal(first["slow/norm.bias"], first["quick/norm.bias"])
