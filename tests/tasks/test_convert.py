"""`tats convert`: round trips, what other layouts cannot hold, refusals that leave nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint, save_checkpoint
from tatscli.errors import CheckpointError, UsageError
from tatscli.files import draft_of
from tatscli.nn.classifier import build_classifier
from tatscli.nn.load import open_checkpoint
from tatscli.nn.trained import load_classifier
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.schema import ClassGroup
from tatscli.system.system import build_system
from tatscli.tasks.convert import convert
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.weights.form import Form, Vit, recipe_of
from tatscli.weights.layouts import Given
from tests.nn.videomae_weights import randomize
from tests.tasks.runs import assert_equal, weights
from tests.weights.models import equal, official, our_scores, random_video, save_official

QUIET = Reporter(quiet=True)
NANO = Form(Vit(32, 2, 2, 128), 2, 8, decoder=Vit(16, 1, 1, 64), frames=8, size=32)
ODD = Form(Vit(48, 1, 3, 100), 4, 8, decoder=Vit(24, 2, 3, 70), frames=8, size=(32, 48))
PLAIN = replace(NANO, normalize=False, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
SMALL = Form(Vit(384, 1, 6, 96), 2, 16, decoder=Vit(192, 1, 3, 768))


def make_run(
    folder: Path,
    recipe: Recipe,
    classes: list[str] | None = None,
    groups: dict[str, ClassGroup] | None = None,
    **more: Any,
) -> Path:
    """Write a run with random weights: of a classifier where classes are named."""
    torch.manual_seed(6)
    if classes is None:
        module: Any = build_system(recipe).autoencoder
    else:
        module = build_classifier(recipe, classes=len(classes), groups=groups)
    randomize(module)
    meta = {"kind": "pretrained", "name": folder.name, "recipe": recipe.model_dump(mode="json")}
    if classes is not None:
        meta |= {"kind": "finetuned", "class_names": classes}
    tensors = {"model": module.state_dict()}
    save_checkpoint(folder, step=7, tensors=tensors, meta=meta | more, keep=1, best=False)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder


def heads_of(form: Form) -> Given:
    return Given(form.encoder.heads, form.decoder.heads if form.decoder else None)


@pytest.mark.parametrize("classes", [None, ["b", "a", "ö c"]], ids=["pretraining", "classifier"])
@pytest.mark.parametrize("form", [NANO, ODD, PLAIN, SMALL], ids=["nano", "odd", "plain", "small"])
def test_through_all_layouts_no_bit_changes(
    tmp_path: Path, form: Form, classes: list[str] | None
) -> None:
    recipe = recipe_of(form if classes is None else replace(form, decoder=None), "x")
    recipe = load_recipe(_written(tmp_path, recipe), ["data.sampling.stride=3"]).recipe
    first = make_run(tmp_path / "first", recipe, classes)
    hf, again, file, last = (tmp_path / name for name in ("hf", "again", "file.pth", "last"))
    convert(first, to="hf", out=hf, reporter=QUIET)
    convert(hf, to="tats", out=again, reporter=QUIET)
    convert(again, to="videomae", out=file, reporter=QUIET)
    size = recipe.data.size
    said = [f"data.frames={recipe.data.frames}", f"data.size={json.dumps(size)}"]
    convert(file, to="tats", out=last, reporter=QUIET, given=heads_of(form), overrides=said)
    before = find_checkpoint(first).tensors("model")
    if classes is not None:  # which neither layout has a place for, and no classifier uses
        before = {k: v for k, v in before.items() if not k.startswith("encoder.norm.")}
    for run in (again, last):
        after = find_checkpoint(run).tensors("model")
        equal({name: after[name] for name in before}, before)
        assert all(name.startswith("encoder.norm.") for name in after.keys() - before.keys())
    restored = open_checkpoint(again)
    assert restored.recipe == recipe  # frames, stride and everything else
    assert restored.checkpoint.meta.get("class_names") == classes
    grid = open_checkpoint(last).recipe
    assert (grid.grid, grid.model.heads or 6) == (recipe.grid, form.encoder.heads)


def _written(folder: Path, recipe: Recipe) -> Path:
    path = folder / "some.yaml"
    path.write_text(dump_recipe(recipe))
    return path


def test_a_run_of_ours_keeps_its_sampler_at_step_zero(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(task=pretrain)
    result = convert(run, to="tats", out="runs/copy", reporter=QUIET)
    assert_equal(run, "runs/copy", "model")
    copy = find_checkpoint(Path("runs/copy"))
    assert copy.path.name == "step-0000000" and copy.step == 0
    kept = {k: v for k, v in weights(run, "masker").items() if k.startswith("weights/")}
    equal(weights("runs/copy", "masker"), kept)
    assert not copy.has("optimizer")
    said = json.loads(Path("runs/copy/run.json").read_text())
    digest = find_checkpoint(run).digest()
    assert said["source_sha256"] == digest == result["sha256"]
    assert said["source"] == str(find_checkpoint(run).path)
    assert load_recipe("runs/copy/recipe.yaml").recipe == open_checkpoint(run).recipe


def test_a_sampler_stays_behind_and_a_tube_mask_takes_its_place(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained(task=pretrain)
    result = convert(run, to="hf", out="hub", reporter=QUIET)
    assert result["left_out"]["the file `masker` of the checkpoint"] > 10
    loaded = open_checkpoint("hub")
    assert (loaded.recipe.mask.kind, loaded.recipe.mask.ratio) == ("tube", 0.75)
    assert any("without its sampler" in one for one in loaded.checkpoint.remarks)
    equal(loaded.checkpoint.tensors("model"), find_checkpoint(run).tensors("model"))


@pytest.mark.parametrize("to", ["hf", "videomae"])
def test_a_head_that_is_not_videomaes_leaves_its_encoder(tmp_path: Path, to: str) -> None:
    recipe = recipe_of(NANO, "x")
    path = _written(tmp_path, recipe)
    head = "head={kind: regressor, regressor_depth: 1, depth: 1}"
    for change in (head, "targets=[{kind: pixels}, {kind: difference}]", "targets=[{kind: hog}]"):
        other = load_recipe(path, [change]).recipe
        run = make_run(tmp_path / "run", other)
        out = tmp_path / ("out.pth" if to == "videomae" else "out")
        result = convert(run, to=to, out=out, reporter=QUIET, overwrite=True)
        before = find_checkpoint(run).tensors("model")
        encoder = {name: one for name, one in before.items() if name.startswith("encoder.")}
        assert list(result["left_out"].values()) == [len(before) - len(encoder)]
        assert result["written"] == len(encoder)
        back = tmp_path / "back"
        convert(out, to="tats", out=back, reporter=QUIET, given=heads_of(NANO), overwrite=True)
        equal(find_checkpoint(back).tensors("model"), encoder)
        if to == "hf":
            assert json.loads((out / "config.json").read_text())["architectures"] == [
                "VideoMAEModel"
            ]


@pytest.mark.parametrize("pool", ["attention", "cls"])
def test_another_classifier_is_refused_or_leaves_its_encoder(tmp_path: Path, pool: str) -> None:
    path = _written(tmp_path, recipe_of(replace(NANO, decoder=None), "x"))
    recipe = load_recipe(path, [f"finetune.head.pool={pool}"]).recipe
    run = make_run(tmp_path / "run", recipe, ["a", "b"])
    with pytest.raises(CheckpointError, match=f"`finetune.head.pool: {pool}`"):
        convert(run, to="hf", out=tmp_path / "hub", reporter=QUIET)
    assert not (tmp_path / "hub").exists()
    given = Given(partial=True)
    result = convert(run, to="hf", out=tmp_path / "hub", reporter=QUIET, given=given)
    assert result["kind"] == "pretrained"
    assert "a classifier that is not VideoMAE's" in result["left_out"]


def heads_run(folder: Path, *overrides: str) -> Path:
    """A run of three actions of two verbs and two nouns, with a head for each of the two groups."""
    path = _written(folder, recipe_of(replace(NANO, decoder=None), "x"))
    recipe = load_recipe(path, ["finetune.heads=[verb, noun]", *overrides]).recipe
    groups = {
        "verb": ClassGroup(names=("take", "put"), of=(0, 0, 1)),
        "noun": ClassGroup(names=("cup", "lid"), of=(0, 1, 0)),
    }
    more = {"class_groups": {key: one.model_dump(mode="json") for key, one in groups.items()}}
    names = ["take cup", "take lid", "put cup"]
    return make_run(folder / "run", recipe, names, groups=groups, **more)


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
    assert "tensors hold numbers that are not finite, the first is `head.bias`" in outcome.stderr


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_several_heads_are_refused_by_their_key(tmp_path: Path, norm: str) -> None:
    run = heads_run(tmp_path, f"finetune.head.norm={norm}")
    with pytest.raises(CheckpointError, match=r"`finetune.heads: \[verb, noun\]`"):
        convert(run, to="hf", out=tmp_path / "hub", reporter=QUIET)


def test_of_several_heads_classes_are_chosen_by_their_members(tmp_path: Path) -> None:
    run = heads_run(tmp_path)
    (tmp_path / "map.json").write_text("[2, 0]")
    convert(
        run, to="tats", out=tmp_path / "two", reporter=QUIET, classes=tmp_path / "map.json"
    )  # fmt: skip
    before, after = open_checkpoint(run), open_checkpoint(tmp_path / "two")
    assert after.checkpoint.meta["class_names"] == ["put cup", "take cup"]
    video_BCTHW = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        wanted_BL = load_classifier(before).eval()(video_BCTHW)[:, [2, 0]]
        assert torch.equal(load_classifier(after).eval()(video_BCTHW), wanted_BL)


@pytest.mark.parametrize("to", ["hf", "videomae"])
def test_batch_norm_goes_into_the_linear_layer(tmp_path: Path, to: str) -> None:
    path = _written(tmp_path, recipe_of(replace(NANO, decoder=None), "x"))
    recipe = load_recipe(path, ["finetune.head.norm=batch"]).recipe
    run = make_run(tmp_path / "run", recipe, ["a", "b", "c"])
    checkpoint = find_checkpoint(run)
    model = checkpoint.tensors("model")
    model["batch_norm.running_mean_D"] = torch.randn(32)
    model["batch_norm.running_var_D"] = 0.2 + torch.rand(32)
    meta = {key: one for key, one in checkpoint.meta.items() if key not in ("format", "step")}
    save_checkpoint(run, step=7, tensors={"model": model}, meta=meta, keep=1, best=False)
    loaded = open_checkpoint(run)
    video = random_video(loaded)
    out = tmp_path / ("out.pth" if to == "videomae" else "out")
    result = convert(run, to=to, out=out, reporter=QUIET)
    assert "the classifier's BatchNorm is multiplied into its linear layer" in result["notes"]
    convert(
        out,
        to="tats",
        out=tmp_path / "back",
        reporter=QUIET,
        given=Given(heads=2),
        overrides=["data.frames=8", "data.size=32"] if to == "videomae" else [],
    )
    back = open_checkpoint(tmp_path / "back")
    assert back.recipe.finetune.head.norm == "layer"
    scores = our_scores(loaded, video)
    assert scores.std() > 0.1
    torch.testing.assert_close(our_scores(back, video), scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("to", ["hf", "videomae"])
def test_positions_of_ones_own_are_refused(tmp_path: Path, to: str) -> None:
    recipe = recipe_of(NANO, "x")
    run = make_run(tmp_path / "run", recipe)
    checkpoint = find_checkpoint(run)
    model = checkpoint.tensors("model") | {"encoder.positions.table_ND": torch.randn(64, 32)}
    model["head.branches.0.positions.table_ND"] = torch.randn(64, 16)
    meta = {key: one for key, one in checkpoint.meta.items() if key not in ("format", "step")}
    save_checkpoint(run, step=7, tensors={"model": model}, meta=meta, keep=1, best=False)
    out = tmp_path / "out.pth" if to == "videomae" else tmp_path / "out"
    with pytest.raises(CheckpointError, match="positions of its own"):
        convert(run, to=to, out=out, reporter=QUIET, given=Given(partial=True))
    convert(run, to="tats", out=tmp_path / "copy", reporter=QUIET)
    equal(find_checkpoint(tmp_path / "copy").tensors("model"), model)


def test_the_card_says_what_is_known(load: Any, reporter: Reporter, store: Path, cli: Any) -> None:
    run = Path("runs/tuned")
    loaded = load("run.max_steps=1", "finetune.head.norm=batch")
    finetune(loaded, reporter=reporter, init=None, out=run)
    assert cli("evaluate", run, "evaluate.segments=2", "-q").code == 0
    stray = {"checkpoint_sha256": "of other weights", "top1": 1.0}
    (run / "results/stray.json").write_text(json.dumps(stray))
    (run / "results/broken.json").write_text("{")
    convert(run, to="hf", out="hub", reporter=reporter, license="cc-by-nc-4.0")
    text = Path("hub/README.md").read_text()
    _, head, body = text.split("---\n", 2)
    said = yaml.safe_load(head)
    assert said["library_name"] == "transformers"
    assert said["pipeline_tag"] == "video-classification"
    assert said["license"] == "cc-by-nc-4.0"
    assert "base_model" not in said
    (indexed,) = said["model-index"][0]["results"]
    result = json.loads((run / "results/finetuned-val-2x1.json").read_text())
    assert indexed["metrics"][0]["value"] == round(result["top1"], 4)
    assert "2 segments x 1 crops" in indexed["metrics"][0]["name"]
    for words in ("1e-5", "fc_norm.eps = 1e-6", "stride 1", "8 frames of 32 x 32", "BatchNorm"):
        assert words in body
    assert "base_lr: 0.01" in body  # the whole recipe
    Path("rows.json").write_text("[1, 0]")
    convert(run, to="hf", out="hub1", reporter=reporter, classes=Path("rows.json"))
    assert "model-index" not in Path("hub1/README.md").read_text()  # of another classifier
    second = finetune(load("run.max_steps=1"), reporter=reporter, init=run, out="runs/second")
    convert(second["run"], to="hf", out="hub2", reporter=reporter)
    said = yaml.safe_load(Path("hub2/README.md").read_text().split("---\n")[1])
    assert said["base_model"] == "tuned"
    assert said["license"] == "unknown"


def test_the_card_of_weights_of_others_invents_no_training(tmp_path: Path) -> None:
    path = save_official(tmp_path / "some.pth", official("finetuned", classes=4))
    given = Given(heads=2)
    convert(path, to="tats", out=tmp_path / "run", reporter=QUIET, given=given)
    convert(tmp_path / "run", to="hf", out=tmp_path / "hub", reporter=QUIET)
    convert(tmp_path / "hub", to="hf", out=tmp_path / "hub2", reporter=QUIET)
    for folder in ("hub", "hub2"):
        body = (tmp_path / folder / "README.md").read_text()
        assert "how it was trained is not" in body and "epochs" not in body
        assert "is not known (4 frames in VideoMAE's Kinetics)" in body


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
        ("some.pth", "--to tats --out out", 1, "how many heads its encoder of width 32"),
        ("some.pth", "--to tats --out out --heads 5", 1, "do not divide the width"),
        ("some.pth", "--to tats --out out --heads 2 model.depth=3", 2, "other shapes"),
        ("some.pth", "--to tats --out out --heads 2 model.dpth=3", 2, "model.dpth"),
        ("some.pth", "--to tats --out out --heads 2 --checkpoint best", 2, "is not a run"),
        ("run", "--to hf --out out --checkpoint best", 1, "no `best` checkpoint"),
        ("run", "--to hf --out out --heads 2", 2, "is a run, and its recipe"),
        ("run", "--to hf --out out data.frames=4", 2, "is a run, and its recipe"),
        ("run", "--to hf --out run", 2, "is the source"),
        ("run", "--to hf --out run/hub", 2, "exists"),
        ("run", "--to tats --out full", 2, "exists"),
        ("run", "--to tats --out full --overwrite", 2, "leaves it alone"),
        ("run", "--to videomae --out out", 2, "must end in .pth"),
        ("run", "--to hf --out out.pth", 2, "looks like a file"),
        ("run", "--to hf --out out --classes far.json", 2, "names row 7"),
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

    monkeypatch.setattr("safetensors.torch.save_file", full)
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
    assert found["dropped"]["the decoder, which is not whole"] == len(
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
