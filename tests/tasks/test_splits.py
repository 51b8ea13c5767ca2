"""A training is the same however its batches are dealt out: to one process or two, in one
micro-batch or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tatscli.engine.checkpoint import find_checkpoint
from tests.tasks import train_all as driver
from tests.tasks.runs import metrics, weights
from tests.tasks.train_all import Job, train_all

STEPS = 20
# Some biases (of keys, or before a normalisation) have no gradient but rounding, of which AdamW
# with its usual epsilon would make steps of full length.
RECIPES = {
    "masked": """
data:
  {{store: {store}, split: train, frames: 8, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
model: {{width: 32, depth: 2, heads: 2, patch: 8}}
mask: {{kind: tube, ratio: 0.75}}
head: {{kind: decoder, depth: 1, width: 32, heads: 2}}
optim:
  {{epochs: 20, total_batch: 8, batch_per_device: 8, base_lr: 1e-2, warmup_epochs: 2, eps: 1e-4}}
run: {{log_every: 1, save_every: 20, device: cpu, precision: fp32}}
""",
    "tokenizer": """
data:
  {{store: {store}, split: train, frames: 2, size: 32, sampling: {{mode: uniform}}, workers: 0}}
tokenizer:
  {{kind: fsq, stride: 8, patch: 4, widths: [16, 16], blocks: 1, levels: [4, 4],
    discriminator: {{start: 5, width: 8, layers: 2}}}}
optim:
  {{epochs: 20, total_batch: 8, batch_per_device: 8, base_lr: 1e-2, warmup_epochs: 2, eps: 1e-4}}
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
FAST = ("tube", "tats")
BY_MICRO_BATCH = ("fsq-entropy", "vq")
"""Here a micro-batch of all processes is looked at as a whole, so accumulation changes it."""
SPLITS: dict[str, tuple[int, tuple[str, ...]]] = {
    "accumulated": (1, ("optim.batch_per_device=4",)),
    "ddp": (2, ("optim.batch_per_device=4", "run.parallel=ddp")),
    "fsdp": (2, ("optim.batch_per_device=4", "run.parallel=fsdp")),
}
"""How a batch of eight is dealt out: processes, and what the recipe says for it."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Callable[[str, str], Path]:
    """Train a case by one process in batches of eight, or in a split; all of its kind together, so
    that processes start once."""
    folder, done = tmp_path_factory.mktemp("splits"), set[tuple[str, bool]]()
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text.format(store=store))

    def train(case: str, split: str) -> Path:
        key = split, case in FAST
        if key not in done:
            processes, more = SPLITS.get(split, (1, ()))
            jobs: list[Job] = [
                (str(folder / f"{recipe}.yaml"), [*changes, *more], str(folder / split / name))
                for name, (recipe, *changes) in CASES.items()
                if (name in FAST) == (case in FAST) and possible(name, split)
            ]
            train_all(jobs) if processes == 1 else launch(jobs, processes, folder / "jobs.json")
            done.add(key)
        return folder / split / case

    return train


def possible(case: str, split: str) -> bool:
    return not (split == "accumulated" and case in BY_MICRO_BATCH)


def launch(jobs: list[Job], processes: int, listed: Path) -> None:
    """Train by several processes."""
    listed.write_text(json.dumps(jobs))
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    done = subprocess.run(
        [sys.executable, *torchrun, driver.__file__, listed],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr


def assert_same_training(one: Path, other: Path) -> None:
    first, second = metrics(one), metrics(other)
    assert [line["step"] for line in first] == [*range(1, STEPS + 1)]
    assert len(first) == len(second)
    for mine, theirs in zip(first, second, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name.startswith("loss"):
                # The critic's is in units of the rewards' spread, which is a thousandth of them.
                exact = 1e-4 if name == "loss/tats" else 1e-5
                assert theirs[name] == pytest.approx(mine[name], rel=exact, abs=exact), name
    assert first[-1]["loss"] != first[0]["loss"]
    parts = ("model", "masker", "discriminator")
    kept = [part for part in parts if find_checkpoint(one).has(part)]
    assert len(kept) > 1 or first[0].keys().isdisjoint({"sampler_lr", "discriminator_lr"})
    for part in kept:
        theirs = weights(other, part)
        for name, value in weights(one, part).items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("split", "case"),
    [
        pytest.param(split, case, marks=() if case in FAST else pytest.mark.slow)
        for split in SPLITS
        for case in CASES
        if possible(case, split)
    ],
)
def test_a_split_batch_trains_as_a_whole_one(
    trained: Callable[[str, str], Path], split: str, case: str
) -> None:
    assert_same_training(trained(case, "whole"), trained(case, split))
