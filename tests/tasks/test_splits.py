"""A training is the same however its batches are dealt out: to one process or two, in one
micro-batch or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tasks import train_all as driver
from tests.tasks.runs import metrics
from tests.tasks.train_all import Job, train_all

STEPS = 20
RECIPES = {
    "masked": """
data:
  {{store: {store}, split: train, frames: 8, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
model: {{width: 32, depth: 2, heads: 2, patch: 8}}
mask: {{kind: tube, ratio: 0.75}}
head: {{kind: decoder, depth: 1, width: 32, heads: 2}}
optim: {{epochs: 20, total_batch: 8, batch_per_device: 8, base_lr: 1e-2, warmup_epochs: 2}}
run: {{log_every: 1, save_every: 20, device: cpu, precision: fp32}}
""",
    "tokenizer": """
data:
  {{store: {store}, split: train, frames: 2, size: 32, sampling: {{mode: uniform}}, workers: 0}}
tokenizer:
  {{kind: fsq, stride: 8, patch: 4, widths: [16, 16], blocks: 1, levels: [4, 4],
    discriminator: {{start: 5, width: 8, layers: 2}}}}
optim: {{epochs: 20, total_batch: 8, batch_per_device: 8, base_lr: 1e-2, warmup_epochs: 2}}
run: {{log_every: 1, save_every: 20, device: cpu, precision: fp32}}
""",
}
SAMPLER = "ratio: 0.75, width: 32, heads: 2"
CASES: dict[str, tuple[str, ...]] = {
    "tube": ("masked",),
    "tats": ("masked", f"mask={{kind: tats, {SAMPLER}, base_lr: 1e-2, warmup: 0.3}}"),
    "tats-steered": (
        "masked",
        f"mask={{kind: tats, {SAMPLER}, base_lr: 1e-2, warmup: 0, entropy_target: 0.9}}",
        "predict={kind: running_cell, budget: 16}",
    ),
    "adamae": ("masked", f"mask={{kind: adamae, {SAMPLER}, base_lr: 1e-2, dropout: 0}}"),
    "regressor": (
        "masked",
        "head={kind: regressor, depth: 1, regressor_depth: 1, alignment: 1}",
        "targets=[{kind: pixels}, {kind: difference}]",
    ),
    "fsq": ("tokenizer",),
    "fsq-entropy": ("tokenizer", "tokenizer.entropy=0.1"),
    "vq": (
        "tokenizer",
        "tokenizer={kind: vq, stride: 8, patch: 4, widths: [16, 16], blocks: 1, codes: 16,"
        " code_width: 4, restart: 0.3, discriminator: {start: 5, width: 8, layers: 2}}",
    ),
}
BY_MICRO_BATCH = {"fsq-entropy", "vq"}
"""What looks at a micro-batch of all processes as a whole, so that accumulation is no split of it."""
PARALLEL: dict[str, tuple[str, ...]] = {"ddp": ()}
"""How two processes share a batch, and what the recipe says for it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text.format(store=store))
    return folder


def jobs(folder: Path, name: str, *more: str, without: set[str] = frozenset()) -> list[Job]:
    return [
        (str(folder / f"{recipe}.yaml"), [*changes, *more], str(folder / name / case))
        for case, (recipe, *changes) in CASES.items()
        if case not in without
    ]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """All of them, by one process, eight clips at a time."""
    train_all(jobs(folder, "alone"))
    return folder / "alone"


@pytest.fixture(scope="module")
def accumulated(folder: Path) -> Path:
    """Those that can be, by one process, twice four clips."""
    train_all(jobs(folder, "accumulated", "optim.batch_per_device=4", without=BY_MICRO_BATCH))
    return folder / "accumulated"


@pytest.fixture(scope="module", params=PARALLEL)
def shared(request: pytest.FixtureRequest, folder: Path) -> Path:
    """All of them, by two processes, four clips each, started once."""
    how = request.param
    listed = folder / f"{how}.json"
    listed.write_text(json.dumps(jobs(folder, how, "optim.batch_per_device=4", *PARALLEL[how])))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [sys.executable, *launch, driver.__file__, listed],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder / how


def assert_same_training(one: Path, other: Path) -> None:
    first, second = metrics(one), metrics(other)
    assert [line["step"] for line in first] == [*range(1, STEPS + 1)]
    assert len(first) == len(second)
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name.startswith("loss") or name.endswith("grad_norm"):
                assert theirs[name] == pytest.approx(mine[name], rel=1e-5, abs=1e-5), name
    assert first[-1]["loss"] != first[0]["loss"]
    files = sorted((one / "checkpoints" / "last").glob("*.safetensors"))
    for file in files:
        theirs = load_file(other / "checkpoints" / "last" / file.name)
        for name, value in load_file(file).items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(alone: Path, shared: Path, case: str) -> None:
    assert_same_training(alone / case, shared / case)


@pytest.mark.parametrize("case", [case for case in CASES if case not in BY_MICRO_BATCH])
def test_two_micro_batches_train_as_one(alone: Path, accumulated: Path, case: str) -> None:
    assert_same_training(alone / case, accumulated / case)
