"""Files of results: what they say, which of them an evaluation replaces, and where they go."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from tatscli.console import Reporter
from tatscli.errors import UsageError
from tatscli.recipe.schema import Run
from tatscli.tasks import result_files
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.result_files import save_result
from tatscli.tasks.results import INDIFFERENT, read_scores, results_home
from tests.small_runs import tiny_recipe
from tests.tasks.classifiers import save_classifier, spoiled


def test_a_result_can_be_repeated_from_what_it_says(run: Path, say: Reporter) -> None:
    words = ["evaluate.crops=3", "run.seed=7"]
    first = evaluate(run, reporter=say, overrides=words)
    keys = {"command", "overrides", "started", "tats", "torch", "python", "device", "precision"}
    keys |= {"seed", "protocol", "checkpoint", "checkpoint_sha256", "store_fingerprint", "recipe"}
    assert keys <= first.keys()
    assert (first["overrides"], first["seed"]) == (words, 7)
    written = Path(first["results"]).read_text()
    again = evaluate(first["checkpoint"], reporter=say, overrides=first["overrides"])
    assert again["results"] == first["results"]  # its own is replaced
    changing = {"started", "seconds", "command"}
    assert {key: one for key, one in again.items() if key not in changing} == {
        key: one for key, one in json.loads(written).items() if key not in changing
    }


def test_a_result_of_another_evaluation_is_never_replaced(
    run: Path, varied: Path, say: Reporter, tmp_path: Path
) -> None:
    def made(*words: str, **options: Any) -> tuple[str, str]:
        found = evaluate(home, reporter=say, overrides=words, **options)
        return Path(found["results"]).name, Path(found["results"]).read_text()

    home = save_classifier(tmp_path / "run", tiny_recipe(varied))
    name, content = made()
    assert name == "finetuned-val-1x1.json"
    others = {name: content}
    bad = spoiled(varied, tmp_path / "bad", {"val/down/0.mp4": None})
    for words, options in (
        (["data.sampling.stride=1"], {}),  # the recipe differs
        (["run.precision=bf16"], {}),
        ([f"data.store={bad}"], {"skip_bad": True}),  # a video less
    ):
        name, content = made(*words, **options)
        assert name.startswith("finetuned-val-1x1-") and name not in others
        others[name] = content
        assert made(*words, **options)[0] == name
        others[name] = (home / "results" / name).read_text()
    same = ("data.workers=1", "evaluate.batch_per_device=3", "run.track=[tensorboard]")
    assert made(*same)[0] == "finetuned-val-1x1.json"
    others["finetuned-val-1x1.json"] = (home / "results/finetuned-val-1x1.json").read_text()
    save_classifier(home, tiny_recipe(varied), seed=1)  # other weights
    name, _ = made()
    assert name not in others
    (home / "results" / "finetuned-val-1x1.json").write_text("{")  # whatever it was
    others["finetuned-val-1x1.json"] = "{"
    assert made()[0] == name
    for one, text in others.items():
        assert (home / "results" / one).read_text() == text
    pairs = {path.with_suffix(".json").name for path in (home / "results").glob("*.safetensors")}
    assert pairs == {*others, name}


def test_results_of_weights_that_belong_to_no_run_go_to_runs(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tmp_path / "models" / "videomae-base"
    (run / "checkpoints").mkdir(parents=True)
    model.mkdir(parents=True)
    step = run / "checkpoints" / "step-0000004"
    assert results_home(run, step) == results_home(step, step) == run
    assert results_home(model, model) == Path("runs/videomae-base")
    file = tmp_path / "vit_b_1.5.pth.tar"
    assert results_home(file, file) == Path("runs/vit_b_1.5")


def test_of_a_recipes_run_section_three_keys_alone_change_an_evaluation() -> None:
    """Whoever adds a key to `run` says in `INDIFFERENT` whether it makes another evaluation."""
    assert Run.model_fields.keys() - set(INDIFFERENT["run"]) == {"seed", "precision", "tf32"}


def test_a_named_result_is_replaced_only_when_asked(
    run: Path, say: Reporter, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "mine.json"
    evaluate(run, reporter=say, out=out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"mine\.json` exists") as error:
        evaluate(run, reporter=say, out=out)
    assert "--overwrite" in str(error.value.hint)
    evaluate(run, reporter=say, out=out, overwrite=True, overrides=["evaluate.crops=3"])
    assert out.read_bytes() != before
    model = run / "checkpoints" / "last" / "model.json"  # its scores would replace the weights
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"model\.safetensors`"):
            evaluate(run, reporter=say, out=model, overwrite=overwrite)
    for name in ("x.safetensors", "x", "x.jsonl"):  # of `x` and `x.json` the scores were one file
        with pytest.raises(UsageError, match=r"must end in \.json"):
            evaluate(run, reporter=say, out=tmp_path / name)


def test_results_that_are_written_at_once_get_files_of_their_own(
    run: Path, say: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = evaluate(run, reporter=say, out=tmp_path / "result.json")
    scores, written = read_scores(tmp_path / "result.json", result), result_files.write_result

    def slowly(*words: Any) -> None:
        time.sleep(0.3)  # an evaluation that looks for a name now finds this one not taken yet
        written(*words)

    monkeypatch.setattr(result_files, "write_result", slowly)
    here: Any = SimpleNamespace(world=SimpleNamespace(main=True), reporter=say)
    found = [{**result, "checkpoint_sha256": str(number)} for number in range(3)]
    place = result_files.Place(tmp_path / "results")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: save_result(one, place, here, scores), found))
    assert len({one["results"] for one in found}) == 3
    for one in found:
        path = Path(one["results"])
        assert json.loads(path.read_text())["checkpoint_sha256"] == one["checkpoint_sha256"]
        assert read_scores(path, one).videos == scores.videos
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert len(names) == 6 and all(name.startswith("finetuned-val-1x1") for name in names)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_result_that_cannot_be_written_is_printed(
    varied: Path,
    tmp_path: Path,
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    home = save_classifier(tmp_path / "run", tiny_recipe(varied))
    if when == "before":
        (home / "results").write_text("where the folder would be")
    else:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(result_files, "write_safely", Mock(side_effect=full))
    outcome = cli("evaluate", home, "--json")
    assert outcome.code == (0 if when == "before" else 1)
    assert outcome.json()["results"] is None and outcome.json()["videos"] == 20
    reason = "it is not a folder" if when == "before" else "No space left"
    assert reason in outcome.stderr and "warning: " in outcome.stderr
    assert not list(home.glob("results/*.safetensors"))
    assert ("--out FILE" in outcome.stderr) == (when == "before")
    assert "all: top-1" in cli("evaluate", home).stdout
