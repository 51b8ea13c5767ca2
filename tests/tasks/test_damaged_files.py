"""Damaged or foreign files in the place of those that we wrote: one line that names the file."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.metrics import MetricsLog
from tatscli.errors import CheckpointError, RecipeError, TatsError
from tatscli.nn.classifier import groups_of
from tatscli.report.sections import Result, evaluations
from tatscli.store.reader import Store
from tatscli.tasks import compare, report
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.recipes import open_recipe
from tatscli.tasks.results import read_result
from tests.small_runs import tiny_recipe
from tests.tasks.classifiers import save_classifier

BROKEN = {
    "empty": b"",
    "list": b"[]",
    "object": b"{}",
    "not UTF-8": b'{"step": "\xff\xfe"}',
    "deep": b"[" * 100_000,
    "cut": b'{"format": 2, "kind": "fine',
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A whole run with a result, metrics and a store of its own."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(store, folder / "store")
    run = save_classifier(folder / "run", tiny_recipe(folder / "store"))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    quiet = Reporter(quiet=True, stdout=io.StringIO(), stderr=io.StringIO())
    evaluate(run, reporter=quiet)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy", symlinks=True))


FILES = {
    "run/checkpoints/last/meta.json": ("evaluate", "report"),
    "run/run.json": ("report", "runs"),
    "run/recipe.yaml": ("runs compare",),
    "run/metrics.jsonl": ("report", "runs"),
    "run/results/finetuned-val-1x1.json": ("compare", "report", "runs best"),
    "store/dataset.json": ("evaluate",),
    "store/manifest.jsonl": ("evaluate",),
}
WORDS = {
    "evaluate": ("evaluate", "{run}", "data.store={store}", "-q"),
    "report": ("report", "{run}", "--clips", "0", "-q"),
    "runs": ("runs", "{run}"),
    "runs best": ("runs", "best", "{run}"),
    "runs compare": ("runs", "compare", "{run}", "{run}"),
    "compare": ("compare", "{run}/results/finetuned-val-1x1.json"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line_that_names_it(
    copy: Path, cli: Callable[..., Any], name: str, content: bytes
) -> None:
    (copy / name).write_bytes(content)
    for command in FILES[name]:
        words = [one.format(run=copy / "run", store=copy / "store") for one in WORDS[command]]
        outcome = cli(*words)
        assert outcome.code in (0, 1, 2)
        if outcome.code:
            error = outcome.stderr.split("error: ", 1)[1].split("\n\nhint:")[0].strip()
            assert "\n" not in error or error.startswith("recipe"), error  # a list of problems
            assert (
                Path(name).name in error
                or "store" in error
                or "has no result" in error
                or (command == "runs best" and "no run in" in error)
            ), error


def changed(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a copy for every key that is of another type, or missing."""
    for key in value:
        yield key, {name: one for name, one in value.items() if name != key}
        for other in (7, "text", [7], {"a": {"b": None}}, None, True):
            yield key, value | {key: other}


def test_a_checkpoint_with_any_key_wrong_is_used_or_refused(copy: Path) -> None:
    file = copy / "run/checkpoints/last/meta.json"
    whole = json.loads(file.read_text())
    refused = set()
    for key, meta in changed(whole):
        file.write_text(json.dumps(meta))
        try:
            checkpoint = find_checkpoint(copy / "run")
            groups_of(checkpoint.meta)
            assert checkpoint.recipe.data.frames and checkpoint.kind and checkpoint.step >= 0
        except CheckpointError as error:
            refused.add(key)
            assert "\n" not in error.message
            assert "meta.json" in error.message or "has checkpoint format" in error.message
    assert {"format", "kind", "step", "recipe", "class_names", "files"} <= refused


def test_a_result_with_any_key_wrong_is_used_or_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tatscli.report.sections.draw_confusion", lambda *_: "")
    file = copy / "run/results/finetuned-val-1x1.json"
    whole = json.loads(file.read_text())
    refused = set()
    for key, facts in changed(whole):
        file.write_text(json.dumps(facts))
        try:
            read_result(file)
        except TatsError as error:
            refused.add(key)
            assert "\n" not in error.message and file.name in error.message
        else:
            shown = report._chosen([Result(file, facts)], None)
            list(evaluations([Result(file, facts)], shown))
            found = compare.Compared("one", file, facts)
            compare._row(found)
            compare.groups([found])
    assert {"protocol", "recipe", "top1", "confusion", "class_names", "per_class"} <= refused


def test_old_recipes_load_where_an_unknown_key_cannot_matter(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy / "run/checkpoints/last/meta.json"
    whole = json.loads(file.read_text())

    def meta(**sections: dict[str, Any]) -> None:
        recipe = {
            name: one | sections.get(name, {}) if isinstance(one, dict) else one
            for name, one in whole["recipe"].items()
        }
        file.write_text(json.dumps(whole | {"recipe": recipe}))

    meta(run={"gone": 3}, optim={"older": "x"}, mask={"off": None}, model={"none": None})
    assert find_checkpoint(copy / "run").recipe == tiny_recipe(copy.parent / "x").model_copy(
        update={"data": find_checkpoint(copy / "run").recipe.data}
    )
    said = capsys.readouterr().err
    for key in ("`run.gone`", "`optim.older`", "`mask.off`", "`model.none`"):
        assert key in said
    for section, key in (("model", "norm"), ("data", "speed"), ("mask", "shape")):
        meta(**{section: {key: 3}})
        with pytest.raises(CheckpointError, match=rf"meta\.json`, which tats 0\.1\.0 .*{key}"):
            _ = find_checkpoint(copy / "run").recipe


def test_a_runs_recipe_may_have_unknown_keys_that_cannot_matter(
    copy: Path, cli: Callable[..., Any]
) -> None:
    file = copy / "run/recipe.yaml"
    text = file.read_text()
    file.write_text(text.replace("\nrun:\n", "\nrun:\n  gone: 3\n"))
    loaded, _ = open_recipe(str(copy / "run"), [])
    assert any("`run.gone`" in note for note in loaded.notes)
    assert cli("runs", "compare", copy / "run", copy / "run").code == 0
    file.write_text(text.replace("\nmodel:\n", "\nmodel:\n  gone: 3\n"))
    with pytest.raises(RecipeError, match=r"line \d+: .*model.*gone"):
        open_recipe(str(copy / "run"), [])


def test_metrics_that_are_not_utf8_do_not_stop_a_run_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2}\n\xff\xfe\x00\n{"step": 2, "note": "\xff"}\n[1]\n')
    MetricsLog(path, step=2).write({"step": 3.0})
    kept = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert kept == [1, 2, 3.0]


def test_a_manifest_names_the_line(copy: Path) -> None:
    with (copy / "store/manifest.jsonl").open("ab") as file:
        file.write(b'{"id": 3}\n')
    with pytest.raises(TatsError, match=r"is damaged: `manifest\.jsonl`, line 19: `id`: "):
        Store.open(copy / "store")
