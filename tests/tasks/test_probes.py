"""Probes on videos, with layers, shots and untrained encoders: `tats evaluate`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.drawn import DrawnViews
from tatscli.data.normalize import standardized
from tatscli.errors import CheckpointError, DataError, RecipeError, UsageError
from tatscli.evaluation import probe as probes
from tatscli.evaluation.features import PooledFeatures
from tatscli.nn.load import load_encoder, open_checkpoint
from tatscli.nn.vit import build_encoder
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.schema import Augment, Sampling
from tatscli.store.reader import Store
from tatscli.tasks import frozen
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.frozen import frozen_encoder
from tatscli.tasks.pretrain import pretrain
from tests.tasks.conftest import RECIPE

Load = Callable[..., LoadedRecipe]

FEW = ("evaluate.probe.epochs=2", "evaluate.probe.rates=[1e-3,1e-2]", "evaluate.probe.decays=[0]")


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained run of one step, which the tests of this file only read."""
    folder = tmp_path_factory.mktemp("probed")
    (folder / "tiny.yaml").write_text(RECIPE.format(store=store))
    loaded = load_recipe(folder / "tiny.yaml", ["run.max_steps=1"])
    quiet = Reporter(quiet=True)
    return Path(pretrain(loaded, reporter=quiet, out=folder / "run")["run"])


def scored(run: Path, reporter: Reporter, protocol: Any, *words: str, **options: Any) -> Any:
    return evaluate(run, reporter=reporter, protocol=protocol, overrides=[*FEW, *words], **options)


@pytest.mark.parametrize("protocol", ["linear", "attentive"])
def test_a_probe_says_how_it_was_chosen_and_counts_every_video_once(
    run: Path, reporter: Reporter, protocol: str
) -> None:
    words = ("evaluate.segments=2", "evaluate.crops=3", "evaluate.probe.views=2")
    result = scored(run, reporter, protocol, *words)
    assert (result["videos"], result["views"], result["train_videos"]) == (6, 36, 12)
    assert sum(map(sum, result["confusion"])) == 6
    facts = result["probe"]
    assert [(one["rate"], one["decay"]) for one in facts["choices"]] == [(1e-3, 0), (1e-2, 0)]
    assert all(0 <= one["top1"] <= 1 and one["loss"] > 0 for one in facts["choices"])
    assert facts["rate"] in (1e-3, 1e-2)
    assert (facts["held_out"], facts["views"]) == (3, 2)  # one of four of each class
    assert (result["layer"], result["shots"], result["untrained"]) == (None, None, False)
    written = json.loads(Path(result["results"]).read_text())
    assert written == json.loads(json.dumps(result))


@pytest.mark.slow
def test_results_of_what_differs_lie_side_by_side(run: Path, reporter: Reporter) -> None:
    names = [
        Path(scored(run, reporter, protocol, *words, **options)["results"]).name
        for protocol, words, options in (
            ("linear", (), {}),
            ("linear", ("evaluate.layer=2",), {}),
            ("linear", ("evaluate.shots=2",), {}),
            ("linear", ("evaluate.shots=2", "run.seed=1"), {}),
            ("linear", (), {"untrained": True}),
            ("attentive", ("evaluate.probe.queries=4",), {}),
            ("attentive", ("evaluate.probe.form=vjepa",), {}),
            ("knn", ("evaluate.layer=2", "evaluate.shots=3"), {}),
        )
    ]
    assert names == [
        "linear-val-1x1.json",
        "linear-val-1x1-layer2.json",
        "linear-val-1x1-shots2-seed0.json",
        "linear-val-1x1-shots2-seed1.json",
        "untrained-linear-val-1x1-seed0.json",
        "attentive-efficient4-val-1x1.json",
        "attentive-vjepa1-val-1x1.json",
        "knn-val-1x1-layer2-shots3-seed0.json",
    ]


def test_what_is_chosen_does_not_depend_on_the_videos_that_are_scored(
    run: Path, reporter: Reporter, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other labels, other videos: the same choice, held-out scores and weights."""
    other = tmp_path / "other"
    shutil.copytree(store, other)
    rows = [json.loads(line) for line in (other / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "val":
            row["label"] = (row["label"] + 1) % 3
    (other / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept: list[probes.Chosen] = []
    order: list[str] = []

    def spy(*args: Any, **options: Any) -> probes.Chosen:
        kept.append(probes.choose_probe(*args, **options))
        order.append("chosen")
        return kept[-1]

    def views(*args: Any) -> Any:
        order.append("scored")
        return frozen_views(*args)

    frozen_views = frozen.scored_views
    monkeypatch.setattr(frozen, "choose_probe", spy)
    monkeypatch.setattr(frozen, "scored_views", views)
    plain = scored(run, reporter, "attentive")
    labels = scored(run, reporter, "attentive", f"data.store={other}", out=tmp_path / "a.json")
    videos = scored(run, reporter, "attentive", "evaluate.split=train", out=tmp_path / "b.json")
    assert order == ["chosen", "scored"] * 3
    assert plain["probe"] == labels["probe"] == videos["probe"]
    assert plain["confusion"] != labels["confusion"] != videos["confusion"]
    for one in kept[1:]:
        for name, value in one.probe.state_dict().items():
            assert torch.equal(value, kept[0].probe.state_dict()[name])


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_shots_are_drawn_by_the_seed(
    run: Path, reporter: Reporter, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    def spy(*args: Any) -> list[int]:
        drawn.append(training_rows(*args))
        return drawn[-1]

    training_rows = frozen.reference_rows
    monkeypatch.setattr(frozen, "reference_rows", spy)
    rows = Store.open(open_checkpoint(run).recipe.data.store).rows
    for seed in (0, 0, 1):
        result = scored(run, reporter, protocol, "evaluate.shots=2", f"run.seed={seed}")
        assert (result["shots"], result["train_videos"]) == (2, 6)
    for found in drawn:
        assert sorted(rows[row].label or 0 for row in found) == [0, 0, 1, 1, 2, 2]
        assert {rows[row].split for row in found} == {"train"}
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_layer_is_what_a_hook_on_its_block_sees(run: Path, load: Load) -> None:
    recipe = load().recipe
    encoder = build_encoder(recipe.model, recipe.grid).eval()
    load_encoder(encoder, open_checkpoint(run).checkpoint)
    seen: dict[int, torch.Tensor] = {}
    for number, block in enumerate(encoder.blocks, start=1):
        block.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    video = standardized(
        torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3
    )
    with torch.no_grad():
        last = PooledFeatures(encoder)(video)
        torch.testing.assert_close(last, encoder.norm(seen[6]).mean(1))
        hooked = dict(seen)
        for layer in range(1, 7):
            found = PooledFeatures(encoder, layer=layer)(video)
            torch.testing.assert_close(found, hooked[layer].mean(1))
        embedded = encoder.embed(encoder.cubes(video)) + encoder.positions()
        torch.testing.assert_close(PooledFeatures(encoder, layer=0)(video), embedded.mean(1))


def test_an_untrained_encoder_is_the_one_that_training_begins_with(
    load: Load, reporter: Reporter
) -> None:
    still = ("optim.base_lr=1e-30", "optim.min_lr=0", "optim.weight_decay=0", "run.max_steps=1")
    slow = ("finetune.optim.base_lr=1e-30", "finetune.optim.min_lr=0", "run.max_steps=1")
    slow = (*slow, "finetune.optim.warmup_lr=0", "finetune.val_split=null")
    begun = (
        pretrain(load(*still, "run.seed=5"), reporter=reporter)["run"],
        finetune(load(*slow, "run.seed=5"), reporter=reporter, init=None)["run"],
    )
    fresh = frozen_encoder(load("run.seed=5").recipe, None).state_dict()
    for one in begun:
        tensors = open_checkpoint(one).checkpoint.tensors("model")
        for name, value in fresh.items():
            torch.testing.assert_close(tensors[f"encoder.{name}"], value, rtol=0, atol=1e-12)
    other = frozen_encoder(load("run.seed=6").recipe, None).state_dict()
    assert not torch.equal(other["patch_embed.proj.weight"], fresh["patch_embed.proj.weight"])


def test_features_that_two_bytes_cannot_hold_are_refused(
    run: Path, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PooledFeatures.forward

    def large(self: PooledFeatures, video: torch.Tensor, *kept: Any) -> torch.Tensor:
        return plain(self, video, *kept) * factor

    monkeypatch.setattr(PooledFeatures, "forward", large)
    factor = 1e5
    with pytest.raises(RecipeError, match=r"overflow torch\.float16") as error:
        scored(run, reporter, "attentive")
    assert "evaluate.probe.precision=float32" in str(error.value.hint)
    assert scored(run, reporter, "attentive", "evaluate.probe.precision=float32")["videos"] == 6
    factor = float("nan")
    with pytest.raises(CheckpointError, match=r"view 0 of `train/down/0\.mp4` are not finite"):
        scored(run, reporter, "attentive")


def test_frozen_features_know_no_classes(
    load: Load, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    """A classifier of other classes has an encoder as good as any."""
    short = load("run.max_steps=1", "finetune.val_split=null")
    tuned = finetune(short, reporter=reporter, init=None)["run"]
    other = tmp_path / "other"
    shutil.copytree(store, other)
    facts = json.loads((other / "dataset.json").read_text())
    facts["class_names"] = ["a", "b", "c"]
    (other / "dataset.json").write_text(json.dumps(facts))
    words = f"data.store={other}"
    assert scored(Path(tuned), reporter, "linear", words)["class_names"] == ["a", "b", "c"]
    with pytest.raises(DataError, match="are not those that the run was trained on"):
        scored(Path(tuned), reporter, "finetuned", words)


def test_an_untrained_encoder_needs_a_recipe_alone(
    recipe_file: Path, run: Path, reporter: Reporter
) -> None:
    by_recipe = scored(recipe_file, reporter, "knn", untrained=True)
    assert by_recipe["results"] == "runs/tiny-untrained/results/untrained-knn-val-1x1-seed0.json"
    assert (by_recipe["checkpoint"], by_recipe["step"]) == (None, 0)
    by_run = scored(run, reporter, "knn", untrained=True)
    assert Path(by_run["results"]).parent == run / "results"
    assert by_run["confusion"] == by_recipe["confusion"]
    with pytest.raises(UsageError, match="`--checkpoint best` and `--untrained` exclude"):
        scored(run, reporter, "knn", untrained=True, prefer="best")
    with pytest.raises(UsageError, match="no classifier for `--protocol finetuned`"):
        scored(recipe_file, reporter, "finetuned", untrained=True)
    with pytest.raises(CheckpointError):
        scored(recipe_file, reporter, "knn")


def test_wrong_wishes_are_told(run: Path, reporter: Reporter) -> None:
    for protocol, words, error, said in (
        ("linear", ("evaluate.layer=7",), RecipeError, r"`evaluate.layer: 7` is more than .* 6"),
        ("knn", ("evaluate.shots=5",), DataError, r"`evaluate.shots: 5` .* `\w+` has 4"),
        ("attentive", ("evaluate.probe.queries=5",), RecipeError, "does not divide"),
        ("attentive", ("evaluate.probe.cache_gb=1e-6",), RecipeError, r"evaluate.probe.cache_gb"),
        ("linear", ("evaluate.probe.rates=[1,1]",), RecipeError, "lists a value twice"),
        ("linear", ("evaluate.shots=1",), DataError, "no video can be held out"),
        ("finetuned", ("evaluate.shots=1",), RecipeError, r"`evaluate.shots: 1` is for frozen"),
    ):
        with pytest.raises(error, match=said):
            scored(run, reporter, protocol, *words)


def test_views_of_a_probe_are_the_middle_one_and_drawn_ones(store: Path, load: Load) -> None:
    opened, data = Store.open(store), load().recipe.data
    rows = opened.part("train")[:2]

    def views(seed: int, count: int = 3) -> DrawnViews:
        augment = Augment(crop_scale=(0.3, 0.6), flip=0.5)
        sampling = Sampling(mode="dense", stride=1)
        return DrawnViews(
            opened, rows, data, sampling=sampling, augment=augment, views=count, seed=seed
        )

    first, again, other = views(0), views(0), views(1)
    samples = [first[item][0] for item in range(6)]
    assert [(one.row, one.view) for one in samples] == [(row, v) for row in rows for v in range(3)]
    for item, sample in enumerate(samples):
        assert torch.equal(sample.video_CTHW, again[item][0].video_CTHW)
        assert torch.equal(sample.video_CTHW, other[item][0].video_CTHW) == (sample.view == 0)
    assert torch.equal(samples[3].video_CTHW, views(0, 1)[1][0].video_CTHW)


@pytest.mark.slow
def test_two_ranks_probe_as_one_does(
    run: Path, reporter: Reporter, tats: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    words = (*FEW, "evaluate.probe.views=2", "evaluate.batch_per_device=3", "evaluate.segments=2")
    alone = evaluate(run, reporter=reporter, protocol="attentive", overrides=words)
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29643", "-m")
    both = tats("evaluate", run, "--protocol", "attentive", *words, "--json", launch=launch)
    assert both.returncode == 0, both.stderr
    result = json.loads(both.stdout)
    for key in ("top1", "videos", "views", "confusion", "train_videos", "results"):
        assert result[key] == alone[key]
    for one, other in zip(result["probe"]["choices"], alone["probe"]["choices"], strict=True):
        assert one["top1"] == other["top1"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
