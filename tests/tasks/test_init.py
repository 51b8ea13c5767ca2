"""`--init`: which weights of another run a training begins with, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.errors import CheckpointError
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Recipe
from tatscli.system.system import System, build_system
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain, start_from

Load = Callable[..., LoadedRecipe]

STILL = ("run.max_steps=1", "optim.base_lr=1e-12", "optim.min_lr=0", "optim.warmup_epochs=0")
HARD = ("mask.base_lr=0.3", "optim.epochs=3")


@pytest.fixture
def first(trained: Callable[..., Path]) -> Path:
    """A run whose sampler has learned much in little time."""
    return trained(*HARD, task=pretrain, out="runs/first")


def fresh(recipe: Recipe) -> System:
    torch.manual_seed(1)
    return build_system(recipe)


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{part}.safetensors")


def said(reporter: Reporter) -> str:
    return reporter.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_training_begins_with_the_weights_at_step_zero(
    load: Load, reporter: Reporter, first: Path
) -> None:
    loaded = load("mask.kind=tube", *STILL)
    result = pretrain(loaded, reporter=reporter, out="runs/second", init=first)
    assert result["steps"] == 1
    before, after = weights(first, "model"), weights(Path("runs/second"), "model")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(value, after[name], rtol=0, atol=1e-6)
    assert "encoder and head start from `" in said(reporter)
    # The optimiser is a new one, of one step.
    assert weights(Path("runs/second"), "optimizer")["encoder.norm.weight/step"] == 1


def test_the_sampler_comes_along_where_it_fits(load: Load, reporter: Reporter, first: Path) -> None:
    still = load(*STILL, "mask.base_lr=1e-12", "mask.warmup=0")
    pretrain(still, reporter=reporter, out="runs/second", init=first)
    assert "encoder, head and sampler start from `" in said(reporter)
    before, after = weights(first, "masker"), weights(Path("runs/second"), "masker")
    actor = "weights/policy.actor.weight"
    assert before[actor].abs().max() > 1e-3  # it began at zero
    for name in [name for name in before if name.startswith("weights/policy.")]:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-5)
    assert before["training/actor.weight/step"] == 6
    assert after["training/actor.weight/step"] == 1


@pytest.mark.parametrize(
    "change",
    ["mask.kind=tube", "mask.width=16", "mask.trunk=mha", "mask={kind: adamae, heads: 4}"],
)
def test_a_sampler_that_does_not_fit_stays_behind(load: Load, first: Path, change: str) -> None:
    system = fresh(load(change).recipe)
    before = {name: value.clone() for name, value in system.masker.state_dict().items()}
    assert start_from(system, first).startswith("encoder and head start from `")
    for name, value in system.masker.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_mask_that_is_fixed_takes_no_sampler_and_none_is_missed(
    load: Load, reporter: Reporter, first: Path
) -> None:
    tube = load("mask.kind=tube", "run.max_steps=1")
    pretrain(tube, reporter=reporter, out="runs/tube")
    assert start_from(fresh(load().recipe), "runs/tube").startswith("encoder and head start")


def test_another_head_leaves_the_encoder(load: Load, first: Path) -> None:
    system = fresh(load("head.depth=2").recipe)
    head = {name: value.clone() for name, value in system.autoencoder.head.state_dict().items()}
    words = start_from(system, first)
    count = len(system.encoder.state_dict())
    assert words.startswith("the encoder starts from `")
    assert f"({count} tensors), the head from random weights" in words
    model = weights(first, "model")
    for name, value in system.encoder.state_dict().items():
        assert torch.equal(value, model[f"encoder.{name}"]), name
    for name, value in system.autoencoder.head.state_dict().items():
        assert torch.equal(value, head[name]), name


def test_a_classifier_gives_its_encoder(load: Load, reporter: Reporter) -> None:
    run = finetune(load("run.max_steps=1"), reporter=reporter, init=None)["run"]
    system = fresh(load().recipe)
    assert "the head from random weights" in start_from(system, run)
    model = weights(Path(run), "model")
    assert torch.equal(
        system.encoder.patch_embed.proj.weight, model["encoder.patch_embed.proj.weight"]
    )


def test_another_model_is_refused_before_anything_is_written(
    load: Load, reporter: Reporter, first: Path
) -> None:
    with pytest.raises(CheckpointError, match="tensors match"):
        pretrain(load("model.size=tiny"), reporter=reporter, out="runs/x", init=first)
    assert not Path("runs/x").exists()
