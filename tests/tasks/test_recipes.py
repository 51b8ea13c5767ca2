"""What a new run takes over from the run that its recipe comes from, and what `--resume` keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.nn.load import open_checkpoint
from tatscli.recipe.load import load_recipe
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.recipes import open_recipe
from tests.tasks.runs import metrics

NANO = ("model={width: 32, depth: 1, heads: 2, patch: 8}", "mask.kind=tube")
PLAIN = ("finetune.val_split=null", "run.log_every=1")


@pytest.fixture
def trial(trained: Callable[..., Path]) -> Path:
    """A trial of one step, with a folder and held-out videos of its own."""
    own = ("run.watch={share: 0.2, every: 9}", "run.out=runs/trial", "run.max_steps=1")
    return trained(*NANO, *PLAIN, *own, task=pretrain, out="runs/trial")


def recipe_of(run: str | Path) -> Any:
    return load_recipe(Path(run) / "recipe.yaml").recipe


def test_a_finetuning_is_not_cut_short_by_the_trial_it_starts_from(
    trial: Path, cli: Callable[..., Any]
) -> None:
    assert recipe_of(trial).run.max_steps == 1
    outcome = cli("finetune", trial, "--json")
    assert outcome.code == 0, outcome.stderr
    said = " ".join(outcome.stderr.split())
    assert "not inherited from `runs/trial`: `run.out`, `run.max_steps`, `run.watch`" in said
    found = outcome.json()
    assert (found["run"], found["steps"]) == ("runs/trial-finetune", 4)
    assert (found["total_steps"], found["stopped_by"]) == (4, None)
    run = recipe_of("runs/trial-finetune").run
    assert (run.max_steps, run.out, run.watch) == (None, None, None)
    # What is said on the command line counts, and is no news.
    outcome = cli("finetune", trial, "--max-steps", "2", "--out", "runs/short", "--json")
    assert (outcome.code, outcome.json()["steps"]) == (0, 2)
    assert (outcome.json()["total_steps"], outcome.json()["stopped_by"]) == (4, "run.max_steps")
    said = " ".join(outcome.stderr.split())
    assert "not inherited from `runs/trial`: `run.out`, `run.watch`" in said
    # A fine-tuning goes on by its name or by that of the run it began with.
    for source in (trial, "runs/short"):
        more = ("--out", "runs/short") if source is trial else ("run.max_steps=null",)
        outcome = cli("finetune", source, *more, "--resume", "--json")
        assert outcome.code == 0, outcome.stderr
        assert outcome.json()["steps"] == 4
    assert "the run is complete: all 4 steps are done" in " ".join(outcome.stderr.split())


def test_a_pretraining_from_a_trials_recipe_is_a_whole_one(
    trial: Path, cli: Callable[..., Any]
) -> None:
    outcome = cli("pretrain", trial, "--init", trial, "--out", "runs/whole", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json()["steps"] == 10
    assert json.loads(Path("runs/whole/run.json").read_text())["derived"]["videos"] == 12
    assert recipe_of("runs/whole").run.watch is None


def test_resuming_keeps_the_limit_until_another_is_given(
    trial: Path, cli: Callable[..., Any]
) -> None:
    again = cli("pretrain", trial, "--resume")
    assert again.code == 0, again.stderr
    said = " ".join(again.stderr.split())
    assert "the run has reached `run.max_steps: 1`, and 4 of 5 steps are left" in said
    assert "`--resume run.max_steps=null` continues it" in said
    assert "not inherited" not in said
    assert recipe_of(trial).run.watch is not None
    further = cli("pretrain", trial, "--resume", "--max-steps", "3", "--json")
    assert (further.code, further.json()["steps"]) == (0, 3)
    whole = cli("pretrain", trial, "--resume", "run.max_steps=null", "--json")
    assert (whole.code, whole.json()["steps"]) == (0, 5)
    losses = [line["step"] for line in metrics(trial) if "loss" in line]
    assert losses == [1, 2, 3, 4, 5]


def test_other_settings_of_a_run_are_taken_over(recipe_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "some"
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe_file.read_text() + "\n")
    loaded, folder = open_recipe(str(run), ["run.seed=3"])
    assert (folder, loaded.name, loaded.notes) == (run, "some", ())
    assert loaded.recipe.run.device == "cpu" and loaded.recipe.run.seed == 3
    limited = run / "recipe.yaml"
    limited.write_text(
        recipe_file.read_text().replace("log_every: 1", "log_every: 1, max_steps: 7")
    )
    for resumes, steps in ((False, None), (True, 7)):
        loaded, _ = open_recipe(str(run), [], resumes=resumes)
        assert loaded.recipe.run.max_steps == steps
        assert loaded.recipe.run.log_every == 1
    # A file is what its author wants, limits included.
    assert open_recipe(str(limited), [])[0].recipe.run.max_steps == 7


def test_what_a_training_does_is_said_at_its_start_and_end(
    recipe_file: Path, cli: Callable[..., Any]
) -> None:
    words = ("optim.batch_per_device=3", "mask.kind=tube", "optim.warmup_epochs=1")
    outcome = cli("pretrain", recipe_file, *words, "--max-steps", 2, "--json")
    assert outcome.code == 0, outcome.stderr
    said = " ".join(outcome.stderr.split())
    assert (
        "training on 12 videos: 10 steps = 5 epochs x 2; batch 6 = 3 videos x 1 device x 2 "
        "accumulated; peak lr 0.000234 = 0.01 x 6 / 256, warm-up 2 steps; `run.max_steps` stops it "
        "after step 2"
    ) in said
    assert "stopped after step 2 of 10 by `run.max_steps: 2`: 2 steps in " in said
    assert " s a step; the full schedule takes about " in said
    found = outcome.json()
    assert 0 < found["seconds_per_step"] < found["seconds"]
    whole = cli("finetune", recipe_file, "--scratch", "finetune.optim.epochs=1")
    assert "finished after step 2 of 2: 2 steps in " in whole.stderr


def test_a_run_knows_its_store_from_everywhere(
    load: Callable[..., Any],
    store: Path,
    cli: Callable[..., Any],
    reporter: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was named by a path that is relative to where the training was started."""
    loaded = load(f"data.store={store.name}", "run.max_steps=1", *NANO)
    monkeypatch.chdir(store.parent)
    pretrain(loaded, reporter=reporter, out=tmp_path / "run")
    assert recipe_of(tmp_path / "run").data.store == store.name  # so that both may move together
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("run").recipe.data.store == str(store.resolve())
    outcome = cli("finetune", "run", "--dry-run", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json()["videos"] == 12
    said = f"`data.store: {store.name}` of this run is `{store.resolve()}`"
    assert said in " ".join(outcome.stderr.split())
    away = cli("finetune", "run", "data.store=nowhere")
    assert "no store at `nowhere`" in away.stderr and "`--store`" in away.stderr
