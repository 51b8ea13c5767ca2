"""A run on short clips goes on at longer ones: positions are the same wherever it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tatscli.console import Reporter
from tatscli.nn.classifier import build_classifier
from tatscli.nn.load import open_checkpoint
from tatscli.nn.positions import interpolated, sine_cosine_table
from tatscli.recipe.load import LoadedRecipe
from tatscli.system.load import load_system
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.frozen import frozen_encoder
from tatscli.tasks.pretrain import pretrain
from tests.tasks.runs import weights

Load = Callable[..., LoadedRecipe]

SHORT = ("data.frames=4", "mask={kind: tube, ratio: 0.75}", "run.max_steps=1")
LONG = ("targets=[{kind: pixels}, {kind: ema}]", "optim.epochs=2")
NAME = "encoder.positions.table_ND"
WORDS = "positions of 2 x 4 x 4 tokens interpolated to 4 x 4 x 4"


def said(reporter: Reporter) -> str:
    return reporter.stderr.getvalue().replace("\n", " ")  # type: ignore[attr-defined]


@pytest.fixture
def short(load: Load, reporter: Reporter) -> Path:
    run = Path(pretrain(load(*SHORT), reporter=reporter, out="runs/short")["run"])
    assert not any("positions" in name for name in weights(run))
    return run


def test_from_pretraining_over_resuming_and_tuning_to_evaluation(
    load: Load, reporter: Reporter, short: Path
) -> None:
    long, halves = Path("runs/long"), Path("runs/halves")
    pretrain(load(*LONG), reporter=reporter, out=long, init=short)
    width = load().recipe.model.size
    assert width == "nano"
    expected = interpolated(sine_cosine_table(32, 128), (2, 4, 4), (4, 4, 4))
    model = weights(long)
    assert torch.equal(model[NAME], expected)
    count = sum(name.startswith("encoder.") for name in model) - 1
    # Another target, another head: the encoder alone comes along.
    assert f"({count} tensors; {WORDS}), the head from random weights" in said(reporter)
    assert not any("positions" in name for name in model if name.startswith("head."))
    assert torch.equal(weights(long, "targets")["ema/positions.table_ND"], expected)

    pretrain(load(*LONG, "run.max_steps=2"), reporter=reporter, out=halves, init=short)
    pretrain(load(*LONG), reporter=reporter, out=halves, resume=True)
    for part in ("model", "targets", "optimizer"):
        first, second = weights(long, part), weights(halves, part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part

    looked, system = load_system(long)
    assert torch.equal(system.encoder.positions(), expected)
    assert torch.equal(frozen_encoder(looked.recipe, looked.checkpoint).positions(), expected)
    tuned = Path(
        finetune(load("run.max_steps=1"), reporter=reporter, init=long, out="runs/tuned")["run"]
    )
    assert torch.equal(weights(tuned)[NAME], expected)
    assert f"({count + 1} tensors)" in said(reporter)  # the same grid: nothing to say
    run = open_checkpoint(tuned)
    classifier = build_classifier(run.recipe, classes=3)
    classifier.load_state_dict(run.checkpoint.tensors("model"))
    assert torch.equal(classifier.encoder.positions(), expected)
    assert evaluate(tuned, reporter=reporter)["videos"] == 6
    assert said(reporter).count(WORDS) == 2
    teacher = f"targets=[{{kind: teacher, run: {long}}}]"
    words = ("mask={kind: tube, ratio: 0.75}", "run.max_steps=1", teacher)
    assert pretrain(load(*words), reporter=reporter, out="runs/taught")["steps"] == 1


def test_a_whole_system_brings_its_heads_positions(
    load: Load, reporter: Reporter, short: Path
) -> None:
    words = ("mask={kind: tube, ratio: 0.75}", "run.max_steps=1")
    pretrain(load(*words), reporter=reporter, out="runs/long", init=short)
    assert f"({len(weights(short))} tensors; {WORDS})" in said(reporter)
    assert "encoder and head start from" in said(reporter)
    tables = {n: v for n, v in weights(Path("runs/long")).items() if "positions" in n}
    assert tables.keys() == {NAME, "head.branches.0.positions.table_ND"}
    for table in tables.values():
        before = sine_cosine_table(32, table.shape[1])
        assert torch.equal(table, interpolated(before, (2, 4, 4), (4, 4, 4)))


@pytest.mark.parametrize("protocol", ["knn", "finetuned"])
def test_evaluation_on_longer_clips_says_so(
    load: Load, reporter: Reporter, short: Path, protocol: str
) -> None:
    run = short
    if protocol == "finetuned":
        run = Path(finetune(load(*SHORT), reporter=reporter, init=short)["run"])
    assert WORDS not in said(reporter)
    result = evaluate(run, reporter=reporter, protocol=protocol, overrides=["data.frames=8"])  # type: ignore[arg-type]
    assert result["videos"] == 6
    assert WORDS in said(reporter)


def test_two_halves_of_a_joint_training_share_them(
    load: Load, reporter: Reporter, short: Path
) -> None:
    words = ("mask={kind: tube, ratio: 0.75}", "finetune.auxiliary=0.9")
    straight, halves = Path("runs/straight"), Path("runs/halves")
    finetune(load(*words), reporter=reporter, init=short, out=straight)
    finetune(load(*words, "run.max_steps=2"), reporter=reporter, init=short, out=halves)
    finetune(load(*words), reporter=reporter, init=None, out=halves, resume=True)
    for part in ("model", "head"):
        first, second = weights(straight, part), weights(halves, part)
        assert any("positions" in name for name in first)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), part
