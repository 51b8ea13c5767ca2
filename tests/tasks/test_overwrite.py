"""`--overwrite`: what it replaces is there until the new run has a checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import Pretraining, pretrain
from tests.tasks.runs import metrics

SHORT = ("mask.kind=tube", "run.max_steps=2", "optim.epochs=2")
CLIPS = ("data.frames=16", "data.sampling.short=error")  # the videos have 12 frames


def files(folder: Path) -> dict[str, bytes]:
    found = (one for one in folder.rglob("*") if one.is_file())
    return {str(one.relative_to(folder)): one.read_bytes() for one in found}


@pytest.mark.parametrize("task", [pretrain, finetune])
def test_what_cannot_be_trained_costs_no_run(
    trained: Callable[..., Path], recipe_file: Path, cli: Callable[..., Any], task: Any
) -> None:
    run = trained(*SHORT, task=task)
    before = files(run)
    command = (task.__name__, recipe_file, "--out", run, "--overwrite", *SHORT)
    command = (*command, *(("--scratch",) if task is finetune else ()))
    for wrong, said in (
        (CLIPS, "too short"),
        (("optim.base_lr=1e-7", "finetune.optim.base_lr=1e-7"), "optim.min_lr: 1e-0"),
        (("data.split=nix", "finetune.split=nix"), "has no split `nix`"),
    ):
        outcome = cli(*command, *wrong)
        assert outcome.code in (1, 2)
        assert said in outcome.stderr
        assert files(run) == before


def test_a_run_that_fails_before_its_first_checkpoint_puts_the_old_one_back(
    trained: Callable[..., Path],
    recipe_file: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained(*SHORT, task=pretrain)
    before = files(run)
    plain = Pretraining.step
    words = ("pretrain", recipe_file, "--out", run, "--overwrite", *SHORT, "run.seed=7")

    def fail_at(number: int) -> None:
        steps = itertools.count(1)

        def step(self: Pretraining, *given: Any) -> Any:
            assert (run / "replaced" / "checkpoints").is_dir()  # and no longer in its place
            if next(steps) == number:
                raise OSError(28, "No space left on device")
            return plain(self, *given)

        monkeypatch.setattr(Pretraining, "step", step)

    fail_at(1)
    outcome = cli(*words)
    assert outcome.code == 1
    assert f"the one it was to replace is back in `{run}`" in outcome.stderr
    assert files(run) == before
    fail_at(2)
    assert cli(*words, "run.save_every=9").code == 1
    after = files(run)
    assert {name: after[name] for name in before} == before
    assert [line["step"] for line in metrics(run / "failed")] == [1]
    monkeypatch.setattr(Pretraining, "step", plain)
    assert cli(*words).code == 0
    assert not (run / "replaced").exists() and not (run / "failed").exists()
    assert files(run).keys() == before.keys()
    assert files(run)["metrics.jsonl"] != before["metrics.jsonl"]
