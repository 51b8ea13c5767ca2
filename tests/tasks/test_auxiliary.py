"""`finetune.auxiliary`: masked modelling beside classification."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.data.batch import Batch, collate
from tatscli.data.normalize import standardized
from tatscli.draws import Draws
from tatscli.engine.distributed import World
from tatscli.engine.rng import seed_torch
from tatscli.engine.session import Session
from tatscli.errors import CheckpointError, RecipeError
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.tasks.dry_run import plan_finetuning
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import Finetuning, finetune
from tatscli.tasks.pretrain import pretrain

Load = Callable[..., LoadedRecipe]

SHARE = "finetune.auxiliary=0.9"


def stage_of(loaded: LoadedRecipe, init: Path | None = None) -> Finetuning:
    """A stage that is built and ready for a step, and the batch of its first videos."""
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    here = Session(World(), torch.device("cpu"), torch.float32, reporter, {})
    seed_torch(loaded.recipe.run.seed)
    stage = Finetuning(loaded, Store.open(loaded.recipe.data.store), init)
    stage.build(here, resume=False)
    stage.to(here.device)
    stage.network = stage.model
    schedule = derive_schedule(stage.optim, videos=len(stage.rows), repeats=1, world=1)
    stage.learners(schedule)
    stage.model.train()
    return stage


def batch_of(stage: Finetuning) -> Batch:
    return collate([stage.clips[0, place][0] for place in range(6)])


def tensors(run: str) -> dict[str, torch.Tensor]:
    last = Path(run) / "checkpoints" / "last"
    return {
        f"{file.stem}/{name}": value
        for file in sorted(last.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def test_the_loss_is_the_two_weighed_by_hand(load: Load) -> None:
    """The masked half sees the clips as they were drawn, the other half mixes them."""
    stage = stage_of(load(SHARE, "mask.kind=random", "finetune.drop_path=0"))
    assert stage.auxiliary is not None
    batch, system = batch_of(stage), stage.auxiliary.system
    found = stage.step(batch, Draws(3))
    draws = Draws(3)
    data = stage.recipe.data
    video = standardized(batch.video_BCTHW, data.mean, data.std)
    mixed, target = stage.mix(video, batch.label_B, draws=draws)
    assert not torch.equal(mixed, video)
    errors = system.errors(system.clip(batch.video_BCTHW), draws)
    scores = stage.classifier(mixed).log_softmax(1)
    loss = -(target * scores).sum(1).mean()
    assert found.loss is not None
    torch.testing.assert_close(found.loss, 0.9 * errors.loss + 0.1 * loss)
    torch.testing.assert_close(found.metrics["loss/masked"], errors.loss)
    torch.testing.assert_close(found.metrics["loss/class"], loss)
    torch.testing.assert_close(found.metrics["loss"], found.loss)


@pytest.mark.parametrize("mask", ["tats", "tube", "mgm"])
def test_both_halves_train_the_same_encoder(load: Load, mask: str) -> None:
    words = (f"mask.kind={mask}", "finetune.head={pool: attention, norm: batch}")
    stage = stage_of(load(SHARE, *words))
    assert stage.auxiliary is not None
    assert stage.auxiliary.system.encoder is stage.classifier.encoder
    batch = batch_of(stage)
    assert (batch.motion is not None) == (mask == "mgm")
    lesson = stage.step(batch, Draws(0))
    assert lesson.loss is not None
    lesson.loss.backward()
    for name, parameter in stage.model.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name
    names = {name for name, _ in stage.model.named_parameters()}
    assert "classifier.encoder.norm.weight" in names
    layers = {name: stage.model.layer_of(name) for name in names}
    assert layers["classifier.encoder.patch_embed.proj.weight"] == 0
    assert layers["classifier.encoder.blocks.5.norm1.weight"] == 6
    assert {layers[name] for name in names if name.startswith("autoencoder.")} == {7}
    assert (f"loss/{mask}" in lesson.metrics) == (mask == "tats")


@pytest.mark.slow
def test_a_joint_run_resumes_bit_equal_and_is_evaluated(load: Load, reporter: Reporter) -> None:
    """With a learned mask: sampler, head and both optimisers as well."""
    words = (SHARE, "finetune.head.norm=batch")
    finetune(load(*words), reporter=reporter, init=None, out="runs/straight")
    finetune(load(*words, "run.max_steps=3"), reporter=reporter, init=None, out="runs/halves")
    finetune(load(*words), reporter=reporter, init=None, out="runs/halves", resume=True)
    first, second = tensors("runs/straight"), tensors("runs/halves")
    assert first.keys() == second.keys()
    assert {name.split("/")[0] for name in first} == {
        *("model", "head", "masker", "optimizer", "bad_steps")
    }
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The model's file is that of any fine-tuning, so whatever reads one reads this.
    plain = build_classifier(load(*words).recipe, classes=3).state_dict()
    assert {name.removeprefix("model/") for name in first if name.startswith("model/")} == set(
        plain
    )
    assert evaluate("runs/halves", reporter=reporter)["videos"] == 6
    lines = [
        json.loads(line) for line in Path("runs/straight/metrics.jsonl").read_text().splitlines()
    ]
    steps = [line for line in lines if "loss/masked" in line]
    for line in steps:
        total = 0.9 * line["loss/masked"] + 0.1 * line["loss/class"]
        assert line["loss"] == pytest.approx(total, rel=1e-4)
        assert {"loss/pixels", "loss/tats", "sampler_lr", "entropy"} <= line.keys()
        assert "plan_faults" not in line
    assert len(steps) == 4
    assert "val_top1" in lines[-1]


def test_it_starts_from_what_fits_of_a_run(load: Load, reporter: Reporter) -> None:
    run = Path(pretrain(load("run.max_steps=1"), reporter=reporter)["run"])
    before = tensors(str(run))
    stage = stage_of(load(SHARE), run)
    assert stage.auxiliary is not None
    state = stage.auxiliary.system.autoencoder.state_dict()
    assert all(torch.equal(before[f"model/{name}"], value) for name, value in state.items())
    sampler = stage.auxiliary.system.masker.state_dict()
    assert all(torch.equal(before[f"masker/weights/{n}"], value) for n, value in sampler.items())
    other = stage_of(load(SHARE, "head.depth=2", "mask.kind=tube"), run)
    for name, value in other.classifier.encoder.state_dict().items():
        assert torch.equal(before[f"model/encoder.{name}"], value)
    result = finetune(load(SHARE, "run.max_steps=1"), reporter=reporter, init=run)
    meta = json.loads((Path(result["checkpoint"]) / "meta.json").read_text())
    assert Path(meta["init"]).name == "step-0000001"
    with pytest.raises(CheckpointError, match="do not fit"):
        stage_of(
            load(SHARE, "model.size=null", "model.width=64", "model.depth=2", "model.heads=2"), run
        )


def test_a_gradient_that_is_not_finite_leaves_both_halves_alone(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Finetuning.step

    def step(self: Finetuning, batch: Any, draws: Any) -> Any:
        lesson = plain(self, batch, draws)
        return lesson._replace(loss=lesson.loss * torch.nan)

    monkeypatch.setattr(Finetuning, "step", step)
    words = (SHARE, "mask.kind=tube", "finetune.val_split=null", "run.max_steps=1")
    finetune(load(*words), reporter=reporter, init=None, out="runs/bad")
    fresh = stage_of(load(*words))
    found = tensors("runs/bad")
    assert fresh.auxiliary is not None
    head = fresh.auxiliary.system.autoencoder.head
    for part, module in (("model", fresh.classifier), ("head", head)):
        for name, value in module.state_dict().items():
            assert torch.equal(found[f"{part}/{name}"], value), name


def test_the_share_is_between_none_and_all(load: Load) -> None:
    for share in ("0", "1", "1.5"):
        with pytest.raises(RecipeError, match=r"finetune\.auxiliary"):
            load(f"finetune.auxiliary={share}")
    plan = plan_finetuning(load(SHARE), Path("runs/x"))
    assert set(plan["parameters"]) == {"encoder", "head", "sampler"}
    assert plan["gflops_per_clip"]["masked half"] > 0
    assert set(plan_finetuning(load(), Path("runs/x"))["parameters"]) == {"encoder"}


@pytest.mark.slow
def test_two_ranks_train_both_halves_together(
    recipe_file: Path, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Ranks draw other masks, so the masked half is near and not the same."""
    words = (
        *("finetune", recipe_file, "--scratch", SHARE, "mask.kind=tube", "finetune.drop_path=0"),
        *("finetune.head.norm=batch", "finetune.val_split=null"),
        "finetune.augment={flip: 0, rand_augment: 0, erasing: 0, mixup: 0, cutmix: 0}",
    )
    alone = tats(*words, "--out", "runs/alone")
    assert alone.returncode == 0, alone.stderr
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29651", "-m")
    both = tats(*words, "finetune.optim.batch_per_device=3", "--out", "runs/both", launch=launch)
    assert both.returncode == 0, both.stderr
    one, two = (
        [json.loads(x) for x in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "both")
    )
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for line, other in zip(one, two, strict=True):
        assert other["loss/masked"] == pytest.approx(line["loss/masked"], rel=0.1)
        assert other["grad_norm"] == pytest.approx(line["grad_norm"], rel=0.5)
