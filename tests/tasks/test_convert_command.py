"""`tats convert` on the command line: what is refused, counted and put back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.console import Reporter
from tatscli.errors import UsageError
from tatscli.files import draft_of
from tatscli.tasks.convert import convert
from tatscli.tasks.pretrain import pretrain
from tatscli.weights.spec import recipe_of
from tests.tasks.made_runs import NANO, make_run
from tests.weights.models import official, save_official

QUIET = Reporter(quiet=True)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    run = make_run(tmp_path / "run", recipe_of(replace(NANO, decoder=None), "x"), ["a", "b", "c"])
    pth = save_official(tmp_path / "some.pth", official("finetuned"))
    pre = make_run(tmp_path / "pre", recipe_of(NANO, "x"))
    (tmp_path / "rows.json").write_text("[2, 0]")
    (tmp_path / "far.json").write_text("[7]")
    (tmp_path / "twice.json").write_text("[1, 1]")
    (tmp_path / "odd.json").write_text('{"a": "b"}')
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    (tmp_path / "few.txt").write_text("x\ny\n")
    (tmp_path / "same.txt").write_text("x\nx\ny\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("years")
    return {"run": run, "pth": pth, "pre": pre}


@pytest.mark.parametrize(
    ("source", "args", "code", "words"),
    [
        ("nowhere", "--to hf --out out", 1, "does not exist"),
        ("full", "--to hf --out out", 1, "holds no checkpoint"),
        (
            "some.pth",
            "--to tats --out out",
            1,
            "encoder of `some.pth`, of width 32",
        ),
        ("some.pth", "--to tats --out out --heads 5", 1, "do not divide the width"),
        ("some.pth", "--to tats --out out --heads 2 model.depth=3", 2, "other shapes"),
        ("some.pth", "--to tats --out out --heads 2 model.dpth=3", 2, "model.dpth"),
        ("some.pth", "--to tats --out out --heads 2 --checkpoint best", 2, "is not a run"),
        ("run", "--to hf --out out --checkpoint best", 1, "no `best` checkpoint"),
        ("run", "--to hf --out out --heads 2", 2, "is a run, which has its own recipe"),
        ("run", "--to hf --out out data.frames=4", 2, "is a run, which has its own recipe"),
        ("run", "--to hf --out run", 2, "is the source"),
        ("run", "--to hf --out run/hub", 2, "exists"),
        ("run", "--to tats --out full", 2, "exists"),
        ("run", "--to tats --out full --overwrite", 2, "leaves it alone"),
        ("run", "--to videomae --out out", 2, "must end in .pth"),
        ("run", "--to hf --out out.pth", 2, "is the name of a file"),
        ("run", "--to hf --out out --classes far.json", 2, "has row 7"),
        ("run", "--to hf --out out --classes twice.json", 2, "a row twice"),
        ("run", "--to hf --out out --classes odd.json", 2, "neither a list of row numbers"),
        ("run", "--to hf --out out --classes nowhere.json", 2, "cannot be read"),
        ("run", "--to hf --out out --class-names few.txt", 2, "names 2 classes"),
        ("run", "--to hf --out out --class-names same.txt", 2, "has `x` twice"),
        ("pre", "--to hf --out out --class-names names.txt", 2, "has no classifier"),
        ("run", "--to onnx --out out", 2, "onnx"),
        ("run", "--to hf", 2, "--out"),
    ],
)
def test_refusals_are_one_message_and_leave_nothing(
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Any,
    source: str,
    args: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run/hub").mkdir()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    outcome = cli("convert", source, *args.split(), "--json")
    assert (outcome.code, outcome.stdout) == (code, "")
    assert words in outcome.stderr and "Traceback" not in outcome.stderr
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_json_is_one_object_with_counts_kinds_and_paths(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--classes", "rows.json", "--heads", 2, "--to", "hf", "--out", "hub"]
    outcome = cli("convert", "some.pth", *words, "--json")
    assert outcome.code == 0
    found = outcome.json()
    assert found["kind"] == "finetuned" and found["layout"] == "VideoMAE"
    assert (found["tensors"], found["matched"], found["classes"]) == (32, 32, 2)
    assert (found["missing"], found["unexpected"]) == ([], [])
    assert set(found["files"]) == {path.name for path in Path("hub").iterdir()}
    assert json.loads(Path("hub/config.json").read_text())["id2label"] == {
        "0": "LABEL_2",
        "1": "LABEL_0",
    }
    assert cli("convert", "some.pth", *words).code == 2
    words += ["--overwrite", "--class-names", "few.txt"]
    outcome = cli("convert", "some.pth", *words)
    assert outcome.code == 0 and "32 of 32" in outcome.stdout
    assert json.loads(Path("hub/config.json").read_text())["label2id"] == {"x": 0, "y": 1}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_conversion_that_fails_while_writing_keeps_what_was_there(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "hub"
    convert(sources["run"], to="hf", out=out, reporter=QUIET)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("tatscli.weights.export.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        convert(sources["pre"], to="hf", out=out, reporter=QUIET, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_kill_between_two_renames_left_is_put_back(tmp_path: Path) -> None:
    target = tmp_path / "hub"
    (tmp_path / ".hub.old").mkdir()
    (tmp_path / ".hub.old/kept").write_text("first")
    with pytest.raises(RuntimeError), draft_of(target) as draft:
        draft.mkdir()
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    assert (target / "kept").read_text() == "first"
    with draft_of(target) as draft:
        draft.mkdir()
        (draft / "kept").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    assert (target / "kept").read_text() == "second"


def test_partial_is_told_on_the_command_line(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = official("pretrained")
    del tensors["decoder.norm.bias"], tensors["encoder.blocks.1.mlp.fc1.weight"]
    save_official(Path("less.pth"), tensors)
    words = ["less.pth", "--to", "tats", "--out", "less", "--heads", 2, "--decoder-heads", 1]
    outcome = cli("convert", *words)
    assert outcome.code == 1 and "2 missing, first `encoder.blocks.1.mlp.fc1.weight`" in (
        outcome.stderr
    )
    assert not Path("less").exists()
    found = cli("convert", *words, "--partial", "--json").json()
    assert found["dropped"]["the decoder, which is incomplete"] == len(
        [name for name in tensors if not name.startswith("encoder.")]
    )
    assert list(found["made"].values()) == [1]
    assert found["missing"] and found["written"] == 30


def test_a_converted_run_is_not_resumed(
    load: Callable[..., Any], reporter: Reporter, trained: Callable[..., Path]
) -> None:
    run = trained(task=pretrain)
    convert(run, to="hf", out="hub", reporter=reporter)
    convert("hub", to="tats", out="runs/copy", reporter=reporter)
    loaded = replace(load("mask={kind: tube, ratio: 0.75}"), name="copy")
    with pytest.raises(UsageError, match="is not the one that"):
        pretrain(loaded, reporter=reporter, out="runs/copy", resume=True)


def test_weights_that_are_not_finite_are_counted(
    tmp_path: Path, sources: dict[str, Path], cli: Any
) -> None:
    found = torch.load(sources["pth"], weights_only=True)
    tensors = next(one for one in found.values() if isinstance(one, dict))
    tensors["head.bias"][0] = float("nan")
    torch.save(found, tmp_path / "nan.pth")
    words = ["--heads", 2, "--to", "hf", "--out", tmp_path / "nan-hub", "--json"]
    outcome = cli("convert", tmp_path / "nan.pth", *words)
    assert outcome.code == 0 and outcome.json()["not_finite"] == 1
    assert "tensors have values that are not finite, the first is `head.bias`" in outcome.stderr
