"""`tats runs`: what is told of run folders, whole, half done or damaged."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter
from tatscli.lock import LOCK, locked
from tatscli.tasks.convert import convert
from tatscli.tasks.result_files import write_result
from tatscli.tasks.runs import list_runs
from tests.small_runs import tiny_recipe
from tests.tasks.classifiers import save_classifier


@pytest.fixture
def runs(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs, one of them in a folder of its own, and things that are none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    for seed, name in enumerate(("a", "b", "deep/c")):
        recipe = tiny_recipe(store, run={"seed": seed}, finetune={"drop_path": 0.1 * (seed == 1)})
        run = save_classifier(folder / name, recipe, seed=seed)
        lines = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 2.5 + seed}, {"step": 2, "val": 0.5}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        result = {
            "protocol": "finetuned", "split": "val", "segments": 2, "crops": 3,
            "top1": 0.5 + 0.1 * seed, "ece": 0.1 * (seed + 1), "top1_interval": [0.4, 0.9],
            "store_fingerprint": "f", "recipe": recipe.model_dump(mode="json"),
        }  # fmt: skip
        write_result(run / "results" / "finetuned-val-2x3.json", result)
    (folder / "notes").mkdir()
    (folder / "notes" / "text.txt").write_text("no run")
    return folder


def older(run: Path, seconds: float) -> None:
    """Let a run be written to so long ago."""
    when = time.time() - seconds
    for path in (run, *run.rglob("*")):
        os.utime(path, (when, when), follow_symlinks=False)


def by_name(folder: Path) -> dict[str, Any]:
    return {one.name: one for one in list_runs(folder)}


def test_a_run_says_how_far_it_came(runs: Path) -> None:
    found = by_name(runs)
    assert set(found) == {"a", "b", "deep/c"}
    one = found["b"]
    assert (one.kind, one.recipe, one.state, one.step, one.total) == (
        "finetuned", "tiny", "finished", 4, 4,
    )  # fmt: skip
    assert (one.loss, one.best, one.results, one.problem) == (3.5, 0.35, 1, None)
    assert one.started == "2026-01-01T00:00:00+00:00"
    files = [path for path in (runs / "b").rglob("*") if path.is_file() and not path.is_symlink()]
    real = {path.resolve() for path in files}
    assert one.bytes == pytest.approx(sum(path.stat().st_size for path in real), abs=100)


def no_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_states_are_told_by_steps_locks_and_the_last_write(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((runs / "a" / "run.json").read_text())
    (runs / "a" / "run.json").write_text(json.dumps(about | {"derived": {"total_steps": 9}}))
    assert by_name(runs)["a"].state == "stopped"
    with locked(runs / "a" / LOCK, runs / "a", Reporter(quiet=True)):
        assert by_name(runs)["a"].state == "running"
        with monkeypatch.context() as patch:  # where the file system does not support file locks
            patch.setattr(fcntl, "flock", no_locks)
            assert by_name(runs)["a"].state == "active"
            older(runs / "a", 3600)
            assert by_name(runs)["a"].state == "stopped"
    older(runs / "a", 3600)
    one = by_name(runs)["a"]
    assert (one.state, one.step, one.total) == ("stopped", 4, 9)
    assert one.age == pytest.approx(3600, abs=60)
    assert [one.name for one in list_runs(runs)][-1] == "a"
    shutil.rmtree(runs / "a" / "checkpoints")  # killed before its first checkpoint
    older(runs / "a", 3600)
    one = by_name(runs)["a"]
    assert (one.state, one.step, one.kind, one.loss) == ("stopped", 0, None, 2.5)
    older(runs / "b", 3600)
    assert by_name(runs)["b"].state == "finished"
    convert(runs / "b", to="tats", out=runs / "copy", reporter=Reporter(quiet=True))
    one = by_name(runs)["copy"]
    assert (one.state, one.kind, one.step) == ("converted", "finetuned", 0)
    for path in (runs / "deep" / "c").iterdir():
        if path.name != "results":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert by_name(runs)["deep/c"].state == "results"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda run: (run / "run.json").write_text('{"recipe": "ti'), "run.json` cannot be read"),
        (lambda run: (run / "run.json").write_bytes(b"\xff\xfe"), "run.json` cannot be read"),
        (lambda run: (run / "run.json").write_text("[]"), "run.json` is not a JSON object"),
        (lambda run: (run / "run.json").unlink(), "there is no `run.json`"),
        (lambda run: (run / "recipe.yaml").unlink(), "there is no `recipe.yaml`"),
        (lambda run: (run / "checkpoints/last/meta.json").write_text(""), "meta.json` cannot be"),
        (lambda run: (run / "checkpoints/last/model.safetensors").unlink(), "no `model.saf"),
        (lambda run: shutil.rmtree((run / "checkpoints/last").resolve()), "broken link"),
    ],
)
def test_damaged_runs_are_listed_with_what_is_damaged(
    runs: Path, damage: Callable[[Path], Any], problem: str, cli: Callable[..., Any]
) -> None:
    damage(runs / "a")
    found = by_name(runs)
    assert (found["a"].state, found["b"].state) == ("damaged", "finished")
    assert problem in (found["a"].problem or "")
    assert cli("runs").code == 0


def test_the_last_speed_that_was_logged_is_listed(runs: Path, cli: Callable[..., Any]) -> None:
    lines = [
        {"step": 3, "clips_per_second": 12.5, "mfu": 0.25},
        {"step": 4, "clips_per_second": 21.25, "mfu": None, "loss": 2.0},
    ]
    with (runs / "a" / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
    one = by_name(runs)["a"]
    assert (one.clips_per_second, one.mfu, one.loss) == (21.25, 0.25, 2.0)
    table = cli("runs").stdout
    assert "clips/s" in table and "21.2" in table and "25.0%" in table
    names = {
        row["name"]
        for row in cli("runs", "compare", "runs/a", "runs/b", "--json").json()["metrics"]
    }
    assert {"clips_per_second", "mfu"} <= names
    (runs / "a" / "metrics.jsonl").unlink()
    assert "clips/s" not in cli("runs").stdout and "MFU" not in cli("runs").stdout


def test_cut_lines_and_broken_results_do_no_harm(runs: Path, cli: Callable[..., Any]) -> None:
    with (runs / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (runs / "a" / "results" / "broken.json").write_text("{")
    assert by_name(runs)["a"].loss == 2.5
    assert cli("runs", "best", "--json").json()["best"]["run"] == "runs/deep/c"


def test_the_best_is_found_by_results_or_validation(runs: Path, cli: Callable[..., Any]) -> None:
    answer = cli("runs", "best", "runs", "--metric", "top1", "--json").json()
    assert [one["run"] for one in answer["ranked"]] == ["runs/deep/c", "runs/b", "runs/a"]
    assert answer["best"] == answer["ranked"][0]
    assert (answer["best"]["value"], answer["best"]["interval"]) == (0.7, [0.4, 0.9])
    assert answer["best"]["result"] == "runs/deep/c/results/finetuned-val-2x3.json"
    assert cli("runs", "best", "--metric", "ece", "--json").json()["best"]["run"] == "runs/a"
    found = cli("runs", "best", "--metric", "val", "--json").json()["best"]
    assert (found["run"], found["value"]) == ("runs/deep/c", pytest.approx(0.45))
    assert cli("runs", "best", "--limit", "1").stdout.count("runs/deep/c") >= 1
    none = cli("runs", "best", "--metric", "nll")
    assert none.code == 1 and "no run in `runs` has `nll`" in none.stderr
    path = runs / "a" / "results" / "untrained-linear-val-1x1-seed0.json"
    result = json.loads((runs / "a" / "results" / "finetuned-val-2x3.json").read_text())
    write_result(path, result | {"untrained": True, "top1": 0.99})
    assert cli("runs", "best", "--json").json()["best"]["run"] == "runs/deep/c"
    assert cli("runs", "best", "--split", "test").code == 1
    assert cli("runs", "best", "--metric", "speed").code == 2


def test_unlike_results_are_ranked_with_a_warning(runs: Path, cli: Callable[..., Any]) -> None:
    path = runs / "a" / "results" / "finetuned-val-2x3.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"split": "test", "store_fingerprint": "g"}))
    outcome = cli("runs", "best")
    assert "several splits: test, val" in outcome.stderr
    assert "2 different stores" in outcome.stderr
    assert not cli("runs", "best", "--split", "val").stderr


def test_two_runs_are_compared_by_recipe_and_numbers(runs: Path, cli: Callable[..., Any]) -> None:
    answer = cli("runs", "compare", "runs/a", "runs/b", "--json").json()
    assert {one["key"]: one["values"] for one in answer["recipe"]} == {
        "finetune.drop_path": [0.0, 0.1],
        "run.seed": [0, 1],
    }
    numbers = {one["name"]: one["values"] for one in answer["metrics"]}
    assert numbers["loss"] == [2.5, 3.5]
    assert numbers["finetuned-val-2x3 top1"] == [0.5, 0.6]
    (runs / "b" / "results" / "finetuned-val-2x3.json").unlink()
    again = cli("runs", "compare", "runs/a", "runs/b")
    assert again.code == 0 and "finetune.drop_path" in again.stdout
    wrong = cli("runs", "compare", "runs/a", "runs/notes")
    assert wrong.code == 1 and "not a run folder" in wrong.stderr


def test_the_list_is_what_runs_does_without_a_command(runs: Path, cli: Callable[..., Any]) -> None:
    listed = cli("runs", "list", "runs", "--json")
    for words in (["runs"], ["runs", "runs"], ["runs", "--quiet"]):
        assert cli(*words, "--json").json().keys() == listed.json().keys() == {"runs"}
    assert "deep/c" in cli("runs").stdout
    alone = cli("runs", "runs/a", "--json").json()["runs"]
    assert [one["name"] for one in alone] == ["a"]
    missing = cli("runs", "elsewhere")
    assert (missing.code, missing.stdout) == (1, "")
    assert "there is no folder `elsewhere`" in missing.stderr
