"""`run.parallel`: two processes that share a model train it as they do with a whole one each."""

from __future__ import annotations

import contextlib
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
from tatscli.engine import joining
from tatscli.engine.distributed import World
from tatscli.errors import UsageError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.tasks.pretrain import pretrain
from tests.tasks.ranks import cut_back
from tests.tasks.runs import metrics

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
pytestmark = pytest.mark.timeout(900)  # of the first, which starts them all
SAMPLER = "width: 16, heads: 2, ratio: 0.75"
AGAIN = "model.checkpointing=true"

SYSTEMS: dict[str, tuple[str, ...]] = {
    "tube": (
        "masked",
        "run.watch={every: 5, share: 0.1}",
        "evaluate.knn.neighbours=2",
        "run.track=[tensorboard]",
        "run.track_pictures=3",
        "optim.epochs=20",  # one step each: a video is held out
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


def job(
    system: str, parallel: str, out: str, begun: tuple[str, int] | None = None, **run: object
) -> dict[str, Any]:
    """A job of `ranks.py`; `run` are keys of that section."""
    recipe, *words = SYSTEMS[system]
    words += [f"run.{key}={value}" for key, value in {"parallel": parallel, **run}.items()]
    found = {"recipe": f"{recipe}.yaml", "words": words, "out": out, "begun": begun}
    return found | {"finetune": system in FINETUNED}


OTHERS = [
    job("tube", "ddp", "rounded/ddp", precision="bf16"),
    job("tube", "fsdp", "rounded/fsdp", precision="bf16"),
    job("tube", "fsdp", "rounded/halves", precision="bf16", begun=("rounded/fsdp", 10)),
    *(
        job("regressor", kind, f"{compiled}/{kind}", compile=compiled, max_steps=3)
        for kind in ("ddp", "fsdp")
        for compiled in ("false", "true")
    ),
]


def alone(folder: Path, out: str) -> Path:
    """Train `adaptive`, in which nothing is drawn, by this process, with as many clips in a step;
    go on if the run is there."""
    with contextlib.chdir(folder):
        one = job("adaptive", "auto", out)
        loaded = load_recipe(Path(one["recipe"]), one["words"])
        quiet = Reporter(quiet=True)
        pretrain(loaded, reporter=quiet, out=out, resume=(folder / out).exists())
    return folder / out


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
        jobs.append(job(system, "fsdp", f"{system}/halves", begun=(f"{system}/fsdp", 10)))
        jobs.append(job(system, "fsdp", f"{system}/crossed", begun=(f"{system}/ddp", 10)))
    jobs += OTHERS
    alone(folder, "adaptive/alone")
    jobs.append(job("adaptive", "fsdp", "adaptive/joined", begun=("adaptive/alone", 10)))
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


def assert_close(first: Path, second: Path, checkpoint: str = "last") -> None:
    one, two = tensors(first, checkpoint), tensors(second, checkpoint)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)


def assert_equal(first: Path, second: Path) -> None:
    one, two = tensors(first), tensors(second)
    assert one.keys() == two.keys()
    assert [name for name, value in one.items() if not torch.equal(value, two[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_sharded_it_learns_what_it_learns_whole(folder: Path, system: str) -> None:
    """Losses, scores and what a checkpoint keeps, all names included."""
    whole, sharded = (metrics(folder / system / kind) for kind in ("ddp", "fsdp"))
    assert [line["step"] for line in whole] == [line["step"] for line in sharded]
    assert whole[-1]["step"] == 20
    for one, other in zip(whole, sharded, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {
            "wall",
            "data_seconds",
            "step_seconds",
            "clips_per_second",
            "peak_memory_gb",
        }:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name
    for checkpoint in ("step-0000010", "step-0000020"):
        assert_close(folder / system / "ddp", folder / system / "fsdp", checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("system", [*SYSTEMS, "rounded"])
def test_sharded_and_resumed_it_is_bit_equal(folder: Path, system: str) -> None:
    assert_equal(folder / system / "fsdp", folder / system / "halves")


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_checkpoint_of_whole_models_goes_on_sharded(folder: Path, system: str) -> None:
    assert_close(folder / system / "ddp", folder / system / "crossed")


@pytest.mark.slow
def test_one_process_and_several_sharing_one_model_learn_the_same(folder: Path) -> None:
    """And each goes on from the other's checkpoint."""
    assert_close(folder / "adaptive/alone", folder / "adaptive/fsdp")
    assert_close(folder / "adaptive/alone", folder / "adaptive/joined")
    cut_back(folder / "adaptive/fsdp", folder / "adaptive/left", 10)
    assert_close(folder / "adaptive/fsdp", alone(folder, "adaptive/left"))
    facts = json.loads((folder / "adaptive/left/run.json").read_text())
    assert (facts["parallel"], facts["processes"]) == ("none", 1)
    (before,) = facts["earlier"]
    assert (before["parallel"], before["processes"]) == ("fsdp", 2)


@pytest.mark.slow
def test_with_rounded_weights_it_learns_as_in_autocast(folder: Path) -> None:
    whole, sharded = (metrics(folder / "rounded" / kind) for kind in ("ddp", "fsdp"))
    for one, other in zip(whole, sharded, strict=True):
        for name in one.keys() & {"loss", "watch/loss", "watch/rankme"}:
            assert other[name] == pytest.approx(one[name], rel=0.01), name
    kept = tensors(folder / "rounded/fsdp")
    assert {one.dtype for one in kept.values()} == {torch.float32}


@pytest.mark.slow
def test_compiled_recomputed_and_shared_it_learns_the_same(folder: Path) -> None:
    plain = [line["loss"] for line in metrics(folder / "false/ddp")]
    assert len(plain) == 3
    for run in ("false/fsdp", "true/ddp", "true/fsdp"):
        lines = metrics(folder / run)
        assert [line["loss"] for line in lines] == pytest.approx(plain, abs=1e-4), run
        assert tensors(folder / run).keys() == tensors(folder / "false/ddp").keys()


def test_one_process_keeps_the_model_whole_and_says_so(
    load: Callable[..., LoadedRecipe], reporter: Reporter
) -> None:
    short = load("mask.kind=tube", "run.max_steps=1", "run.parallel=fsdp")
    run = Path(pretrain(short, reporter=reporter, out="runs/whole")["run"])
    assert "`run.parallel: fsdp`: one process keeps the whole model" in reporter.stderr.getvalue()
    assert json.loads((run / "run.json").read_text())["parallel"] == "none"


def test_processes_that_would_not_share_are_refused_before_anything_is_replaced(
    load: Callable[..., LoadedRecipe], reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Path("runs/kept/recipe.yaml")
    kept.parent.mkdir(parents=True)
    kept.touch()
    monkeypatch.setattr(joining, "joined", lambda kind, **_: contextlib.nullcontext(World(size=2)))
    with pytest.raises(UsageError, match=r"`run.parallel: none` with 2 processes"):
        pretrain(load("run.parallel=none"), reporter=reporter, out="runs/kept", overwrite=True)
    assert kept.exists()
