"""`run.parallel`: two processes that share a model train it as they do with a whole one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tatscli.console import Reporter
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.tasks.pretrain import pretrain
from tests.tasks.ranks import cut_back
from tests.tasks.runs import metrics

Load = Callable[..., LoadedRecipe]
ROOT = Path(__file__).resolve().parents[2]

DATA = """
data:
  {{store: {store}, split: train, frames: {frames}, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
optim: {{epochs: 10, total_batch: 6, batch_per_device: 3, base_lr: 1e-2, warmup_epochs: 1}}
run: {{log_every: 1, save_every: 5, keep: 9, device: cpu}}
"""
MASKED = """
model: {width: 32, depth: 2, heads: 2, patch: 8, drop_path: 0.1}
mask: {kind: tube, ratio: 0.75}
head: {kind: decoder, depth: 1}
finetune:
  optim: {epochs: 10, total_batch: 6, batch_per_device: 3, base_lr: 1e-2, warmup_epochs: 1}
  augment: {flip: 0, rand_augment: 2, rand_augment_ops: 1}
  val_split: val
  val_every: 5
evaluate: {batch_per_device: 4}
"""
CODER = """
tokenizer: {kind: vq, stride: 8, patch: 4, widths: [16, 16], blocks: 1, codes: 16, code_width: 4,
            discriminator: {start: 3, width: 8, layers: 2}}
"""
ADAPTIVE = """
tokenizer: {kind: adaptive, stride: 8, patch: 4, widths: [8, 8], blocks: 1, levels: [5, 5],
            keep: 20, scorer_width: 4, ema: 0.8}
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SAMPLER = "width: 16, heads: 2, ratio: 0.75"
AGAIN = "model.checkpointing=true"

SYSTEMS: dict[str, tuple[str, ...]] = {
    "tube": (
        "masked",
        "run.watch={every: 5, share: 0.1}",
        "evaluate.knn.neighbours=2",
        "run.track=[tensorboard]",
        "run.track_pictures=3",
    ),
    "tats": ("masked", f"mask={{kind: tats, {SAMPLER}, base_lr: 1e-2, warmup: 0.3}}"),
    "adamae": ("masked", f"mask={{kind: adamae, {SAMPLER}, detach: false}}", "optim.clip_grad=0.5"),
    "regressor": (
        "masked",
        "head={kind: regressor, depth: 1, regressor_depth: 1, alignment: 1}",
        "targets=[{kind: pixels}, {kind: difference}]",
        AGAIN,
    ),
    "ema": ("masked", "targets=[{kind: pixels}, {kind: ema, layers: 2, norm: layer}]", AGAIN),
    "accumulated": ("masked", "optim.batch_per_device=1", "optim.clip_grad=0.5"),
    "coder": ("coder",),
    "adaptive": ("adaptive", "optim.base_lr=1e-3"),
    "classifier": ("masked", "finetune.ema=0.9", "finetune.drop={kind: random, ratio: 0.5}"),
    "frozen": ("masked", "finetune.freeze=1", "finetune.head={pool: cls, norm: batch}"),
    "joint": ("masked", "finetune.auxiliary=0.9", AGAIN),
}
FINETUNED = ("classifier", "frozen", "joint")


def job(system: str, parallel: str, out: str, **more: Any) -> dict[str, Any]:
    recipe, *words = SYSTEMS[system]
    words = [*words, f"run.parallel={parallel}"]
    found = {"recipe": f"{recipe}.yaml", "words": words, "out": out}
    return found | {"finetune": system in FINETUNED} | more


@pytest.fixture(scope="module")
def folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recipes, and of every system's runs by two processes."""
    folder = tmp_path_factory.mktemp("parallel")
    kinds = {"masked": (8, MASKED), "coder": (2, CODER), "adaptive": (8, ADAPTIVE)}
    for name, (frames, text) in kinds.items():
        (folder / f"{name}.yaml").write_text(DATA.format(store=store, frames=frames) + text)
    jobs = []
    for system in SYSTEMS:
        jobs += [job(system, kind, f"{system}/{kind}") for kind in ("ddp", "fsdp")]
        jobs.append(job(system, "fsdp", f"{system}/halves", begun=f"{system}/fsdp", at=10))
        jobs.append(job(system, "fsdp", f"{system}/crossed", begun=f"{system}/ddp", at=10))
    (folder / "jobs.json").write_text(json.dumps(jobs))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = subprocess.run(
        [sys.executable, *words, ROOT / "tests/tasks/ranks.py", "jobs.json"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert both.returncode == 0, both.stderr
    return folder


def tensors(run: Path, checkpoint: str = "last") -> dict[str, Tensor]:
    files = sorted((run / "checkpoints" / checkpoint).glob("*.safetensors"))
    assert files
    return {
        f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_sharded_it_learns_what_it_learns_whole(folder: Path, system: str) -> None:
    whole, sharded = (metrics(folder / system / kind) for kind in ("ddp", "fsdp"))
    assert [line["step"] for line in whole] == [line["step"] for line in sharded]
    assert whole[-1]["step"] == 20
    for one, other in zip(whole, sharded, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"wall", "data_seconds", "step_seconds"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name
    for step in (10, 20):
        first, second = (
            tensors(folder / system / kind, f"step-{step:07d}") for kind in ("ddp", "fsdp")
        )
        assert first.keys() == second.keys()
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("system", SYSTEMS)
def test_sharded_and_resumed_it_is_bit_equal(folder: Path, system: str) -> None:
    straight, halves = (tensors(folder / system / kind) for kind in ("fsdp", "halves"))
    assert straight.keys() == halves.keys()
    assert [name for name, value in straight.items() if not torch.equal(value, halves[name])] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_checkpoint_of_whole_models_goes_on_sharded(folder: Path, system: str) -> None:
    first, second = (tensors(folder / system / kind) for kind in ("ddp", "crossed"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)
