"""Weights of others wherever a run or checkpoint is taken: training, evaluation, teachers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.nn.load import open_checkpoint
from tatscli.nn.positions import interpolated, sine_cosine_table
from tatscli.recipe.load import load_recipe, with_protocol
from tatscli.recipe.text import dump_recipe
from tatscli.system.load import load_system
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tests.clips import pan, render
from tests.weights.models import equal, hf_model, official, save_official

transformers = pytest.importorskip("transformers", reason="needs the `hf` extra")
transformers.utils.logging.disable_progress_bar()

CLASSES = ["down", "left", "right"]
TUBE = "mask={kind: tube, ratio: 0.75}"
SIZES = ["model={width: 32, depth: 2, heads: 2, mlp: 128, patch: 8}", TUBE]
HEAD = "head={kind: decoder, width: 16, depth: 1, heads: 1, mlp: 64}"
RATES = ("base_lr=1e-12", "min_lr=0")
STILL = [
    "run.max_steps=1",
    *(f"{one}.{rate}" for one in ("optim", "finetune.optim") for rate in RATES),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining and a classifier of transformers."""
    root = tmp_path_factory.mktemp("downloads")
    hf_model("pretrained").save_pretrained(root / "pretrained")
    names = dict(enumerate(CLASSES))
    model = hf_model("finetuned")
    model.config.id2label, model.config.label2id = names, {one: i for i, one in names.items()}
    model.save_pretrained(root / "finetuned")
    return root


def said(reporter: Reporter) -> str:
    return reporter.stderr.getvalue()  # type: ignore[attr-defined]


def encoder_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if name.startswith("encoder.")}


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_finetuning_begins_with_them(
    load: Callable[..., Any], reporter: Reporter, folders: Path, kind: str
) -> None:
    loaded = load(*SIZES, *STILL, "finetune.val_split=null")
    finetune(loaded, reporter=reporter, init=folders / kind, out="runs/tuned")
    start = open_checkpoint(folders / kind).checkpoint
    tuned = find_checkpoint(Path("runs/tuned"))
    close(encoder_of(start.tensors("model")), encoder_of(tuned.tensors("model")))
    assert tuned.meta["init"] == str((folders / kind).resolve())
    assert f"`{start.path}`" in said(reporter) and "transformers: " in said(reporter)


def test_pretraining_begins_with_all_of_them(
    load: Callable[..., Any], reporter: Reporter, folders: Path
) -> None:
    loaded = load(*SIZES, HEAD, *STILL)
    pretrain(loaded, reporter=reporter, init=folders / "pretrained", out="runs/second")
    start = open_checkpoint(folders / "pretrained").checkpoint.tensors("model")
    close(start, find_checkpoint(Path("runs/second")).tensors("model"))
    assert "encoder and head start from `" in said(reporter)


def test_other_frames_take_over_positions_of_their_grid(
    load: Callable[..., Any], reporter: Reporter, folders: Path
) -> None:
    loaded = load(*SIZES, HEAD, *STILL, "data.frames=4", "data.size=48")
    pretrain(loaded, reporter=reporter, init=folders / "pretrained", out="runs/wide")
    assert "positions of 4 x 4 x 4 tokens interpolated to 2 x 6 x 6" in said(reporter)
    table = find_checkpoint(Path("runs/wide")).tensors("model")["encoder.positions.table_ND"]
    wanted = interpolated(sine_cosine_table(64, 32), (4, 4, 4), (2, 6, 6))
    torch.testing.assert_close(table, wanted)


def test_an_official_file_of_a_published_width(
    load: Callable[..., Any], reporter: Reporter, tmp_path: Path
) -> None:
    tensors = official("pretrained", width=384, depth=1, mlp=96, decoder=(192, 1, 96))
    path = save_official(tmp_path / "vit_s.pth", tensors)
    sizes = "model={width: 384, depth: 1, heads: 6, mlp: 96, patch: 8}"
    loaded = load(sizes, TUBE, *STILL, "finetune.val_split=null", "data.frames=2")
    finetune(loaded, reporter=reporter, init=path, out="runs/tuned")
    assert "16 frames of 224 pixels are assumed" in said(reporter)
    tuned = find_checkpoint(Path("runs/tuned")).tensors("model")
    name = "encoder.blocks.0.attn.q_bias"
    torch.testing.assert_close(tuned[name], tensors[name], rtol=0, atol=1e-6)
    assert "encoder.positions.table_ND" in tuned  # from 8 x 28 x 28


def test_a_folder_of_theirs_is_evaluated(
    load: Callable[..., Any], reporter: Reporter, folders: Path, store: Path
) -> None:
    given = [f"data.store={store}", "data.workers=0", "run.device=cpu"]
    result = evaluate(folders / "finetuned", reporter=reporter, overrides=given)
    assert result["videos"] == 6 and result["class_names"] == CLASSES
    digest = open_checkpoint(folders / "finetuned").checkpoint.digest()
    assert result["checkpoint_sha256"] == digest
    assert Path(result["results"]).parts[0] == "runs"
    assert "weights: transformers: 36 of 36" in said(reporter)
    again = evaluate(
        folders / "pretrained",
        reporter=reporter,
        protocol="knn",
        overrides=[*given, "data.frames=4"],
    )
    assert again["videos"] == 6
    assert "positions of 4 x 4 x 4 tokens interpolated to 2 x 4 x 4" in said(reporter)


def test_a_protocol_comes_from_a_recipe(
    recipe_file: Path, folders: Path, cli: Callable[..., Any], store: Path
) -> None:
    words = ["evaluate", folders / "finetuned", "--recipe", recipe_file, "--json"]
    outcome = cli(*words, "evaluate.segments=2", "run.device=cpu")
    assert outcome.code == 0, outcome.stderr
    found = outcome.json()
    assert (found["store"], found["segments"], found["views"]) == (str(store), 2, 12)
    assert found["recipe"]["data"]["sampling"]["stride"] == 1
    weights = open_checkpoint(folders / "finetuned").recipe
    other = weights.data.model_copy(update={"mean": (0.5, 0.5, 0.5), "frames": 4})
    kept = with_protocol(weights.model_copy(update={"data": other}), recipe_file)
    assert (kept.data.mean, kept.data.frames) == ((0.5, 0.5, 0.5), 4)
    assert kept.evaluate.knn.neighbours == load_recipe(recipe_file).recipe.evaluate.knn.neighbours
    assert kept.model == weights.model
    with_heads = recipe_file.with_name("heads.yaml")
    with_heads.write_text(dump_recipe(load_recipe(recipe_file, ["finetune.heads=[verb]"]).recipe))
    assert with_protocol(weights, with_heads).finetune.heads is None  # the classifier has its own


def test_classes_of_other_names_are_refused(
    recipe_file: Path, folders: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    config = json.loads((folders / "finetuned/config.json").read_text())
    for labels, hint in ((["a", "b", "c"], "labels.txt"), (None, "--class-names FILE")):
        copy = tmp_path / f"copy-{hint[0]}"
        copy.mkdir()
        (copy / "model.safetensors").symlink_to(folders / "finetuned/model.safetensors")
        changed = dict(config)
        changed["id2label"] = dict(enumerate(labels)) if labels else None
        (copy / "config.json").write_text(json.dumps(changed))
        outcome = cli("evaluate", copy, "--recipe", recipe_file, "run.device=cpu")
        assert outcome.code == 1 and hint in outcome.stderr
        assert "are not those that the run was trained on" in outcome.stderr


def test_a_recipe_is_asked_for_where_one_is_needed(
    recipe_file: Path, folders: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    path = save_official(tmp_path / "some.pth", official("finetuned"))
    for source in (folders / "pretrained", path):
        for command in ("finetune", "pretrain"):
            outcome = cli(command, source)
            assert outcome.code == 2
            assert "without a recipe" in outcome.stderr
            assert f"tats finetune RECIPE --init {source}" in outcome.stderr
    assert not Path("runs").exists()


def test_a_teacher_is_theirs(load: Callable[..., Any], reporter: Reporter, folders: Path) -> None:
    target = f"targets=[{{kind: teacher, run: {folders / 'finetuned'}, layer: 2}}]"
    pretrain(load(*SIZES, HEAD, *STILL, target), reporter=reporter, out="runs/taught")
    (frozen,) = find_checkpoint(Path("runs/taught")).meta["frozen"]
    digest = open_checkpoint(folders / "finetuned").checkpoint.file_digest()
    assert frozen == {"path": str((folders / "finetuned").resolve()), "sha256": digest}


def test_their_guesses_can_be_drawn(
    recipe_file: Path, folders: Path, cli: Callable[..., Any]
) -> None:
    run, system = load_system(folders / "pretrained")
    equal(dict(system.autoencoder.state_dict()), run.checkpoint.tensors("model"))
    clip = Path("clip.mp4")
    render(clip, pan((2, 1), frames=10, height=40, width=48))
    words = ["--out", "out.png", "--windows", "1"]
    outcome = cli("visualize-masks", clip, "--run", folders / "pretrained", *words)
    assert outcome.code == 0, outcome.stderr
    assert Path("out.png").stat().st_size > 0
    whole = official("pretrained", width=384, decoder=(192, 1, 96))
    encoder = {name: one for name, one in whole.items() if name.startswith("encoder.")}
    path = save_official(Path("bare.pth"), encoder)
    outcome = cli("visualize-masks", clip, "--run", path, "--out", "two.png")
    assert outcome.code == 1 and "is only an encoder" in outcome.stderr
