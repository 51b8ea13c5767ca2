"""A small labelled store and a tiny recipe, shared by the tests of the stages."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tests.clips import pan, render
from tests.tasks.classifiers import save_classifier
from tests.tasks.varied import varied_recipe, varied_store

MOVES = {"left": (-2, 0), "right": (2, 0), "down": (0, 2)}

RECIPE = """
data:
  {{store: {store}, split: train, frames: 8, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
model: {{size: nano, patch: 8}}
mask: {{kind: tats, ratio: 0.75, width: 32, heads: 2, base_lr: 1e-2, warmup: 0.3}}
head: {{kind: decoder, depth: 1}}
optim: {{epochs: 5, total_batch: 6, batch_per_device: 6, base_lr: 1e-2, warmup_epochs: 1}}
run: {{log_every: 1, save_every: 1, device: cpu}}
finetune:
  optim: {{epochs: 2, total_batch: 6, batch_per_device: 6, base_lr: 1e-2, warmup_epochs: 1}}
  augment: {{flip: 0, rand_augment: 2, rand_augment_ops: 1}}
evaluate: {{knn: {{neighbours: 3}}}}
"""


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos to train on and six to score, of three movements."""
    root = tmp_path_factory.mktemp("videos")
    for split, count in (("train", 4), ("val", 2)):
        for label, (name, step) in enumerate(MOVES.items()):
            for number in range(count):
                path = root / split / name / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                seed = 100 * label + number + (50 if split == "val" else 0)
                render(path, pan(step, frames=12, height=48, width=64, seed=seed))
    return root


@pytest.fixture(scope="session")
def store(videos: Path) -> Path:
    """These videos, prepared."""
    out = videos.parent / "store"
    subprocess.run(
        [sys.executable, "-m", "tatscli", "prepare", videos, "--out", out, "--workers", "1"],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture(scope="session")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twenty videos of differing lengths, in three folders."""
    return varied_store(tmp_path_factory.mktemp("varied"))


@pytest.fixture(scope="session")
def run(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of these videos; a file of tests may have a run of its own by this name."""
    return save_classifier(tmp_path_factory.mktemp("runs") / "tiny", varied_recipe(varied))


@pytest.fixture
def say() -> Reporter:
    """A reporter that says nothing but errors."""
    return Reporter(quiet=True, stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture
def recipe_file(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny recipe, in a folder of the test's own which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(store=store))
    return path


@pytest.fixture
def load(recipe_file: Path) -> Callable[..., LoadedRecipe]:
    """Load the tiny recipe with overrides."""
    return lambda *overrides: load_recipe(recipe_file, overrides)


@pytest.fixture
def reporter() -> Reporter:
    """A reporter whose words stay in the test."""
    return Reporter(stdout=io.StringIO(), stderr=io.StringIO())


@pytest.fixture(scope="session")
def _kept_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Any, Path]]:
    """A folder of runs that were trained once, and which are there."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def trained(
    load: Callable[..., LoadedRecipe], _kept_runs: tuple[Path, dict[Any, Path]]
) -> Callable[..., Path]:
    """Copy a run of the tiny recipe to `out`; it is trained once for every list of overrides.

    `task` trains it: `pretrain`, or `finetune` from scratch.
    """

    def copy(*overrides: str, task: Callable[..., Any], out: str = "runs/tiny") -> Path:
        folder, kept = _kept_runs
        key = (task.__name__, overrides)
        if key not in kept:
            kept[key] = folder / str(len(kept))
            task(load(*overrides), reporter=Reporter(quiet=True), init=None, out=kept[key])
        return Path(shutil.copytree(kept[key], out, symlinks=True))

    return copy


@pytest.fixture(scope="session")
def tats() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `tats` as a real process; `launch` puts words such as torchrun's before the module."""

    def run(
        *args: object, launch: tuple[str, ...] = (), **options: object
    ) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *(launch or ("-m",)), "tatscli", *map(str, args)]
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=240,
            **options,  # type: ignore[call-overload]
        )

    return run
