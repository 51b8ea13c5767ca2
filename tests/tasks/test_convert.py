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
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.engine.keeping import save_checkpoint
from tatscli.errors import CheckpointError
from tatscli.nn.load import open_checkpoint
from tatscli.nn.trained import load_classifier
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.schema import ClassGroup
from tatscli.tasks.convert import convert
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.weights.layouts import Given
from tatscli.weights.spec import ModelSpec, Vit, recipe_of
from tests.tasks.made_runs import NANO, make_run
from tests.tasks.runs import assert_equal, weights
from tests.weights.models import equal, official, our_scores, random_video, save_official

QUIET = Reporter(quiet=True)
ODD = ModelSpec(Vit(48, 1, 3, 100), 4, 8, decoder=Vit(24, 2, 3, 70), frames=8, size=(32, 48))
PLAIN = replace(NANO, normalize=False, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
SMALL = ModelSpec(Vit(384, 1, 6, 96), 2, 16, decoder=Vit(192, 1, 3, 768))


def heads_of(spec: ModelSpec) -> Given:
    return Given(spec.encoder.heads, spec.decoder.heads if spec.decoder else None)


@pytest.mark.parametrize("classes", [None, ["b", "a", "ö c"]], ids=["pretraining", "classifier"])
@pytest.mark.parametrize("spec", [NANO, ODD, PLAIN, SMALL], ids=["nano", "odd", "plain", "small"])
def test_through_all_layouts_no_bit_changes(
    tmp_path: Path, spec: ModelSpec, classes: list[str] | None
) -> None:
    recipe = recipe_of(spec if classes is None else replace(spec, decoder=None), "x")
    recipe = load_recipe(_written(tmp_path, recipe), ["data.sampling.stride=3"]).recipe
    first = make_run(tmp_path / "first", recipe, classes)
    hf, again, file, last = (tmp_path / name for name in ("hf", "again", "file.pth", "last"))
    convert(first, to="hf", out=hf, reporter=QUIET)
    convert(hf, to="tats", out=again, reporter=QUIET)
    convert(again, to="videomae", out=file, reporter=QUIET)
    size = recipe.data.size
    said = [f"data.frames={recipe.data.frames}", f"data.size={json.dumps(size)}"]
    convert(file, to="tats", out=last, reporter=QUIET, given=heads_of(spec), overrides=said)
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
    assert (grid.grid, grid.model.heads or 6) == (recipe.grid, spec.encoder.heads)


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
    digest = find_checkpoint(run).file_digest()
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
    assert any("has no sampler here" in one for one in loaded.checkpoint.remarks)
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
    assert "the classifier's BatchNorm is folded into its linear layer" in result["notes"]
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
    with pytest.raises(CheckpointError, match="position embeddings interpolated"):
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
        assert "how it was trained is unknown" in body and "epochs" not in body
        assert "is unknown (4 for VideoMAE on Kinetics)" in body
