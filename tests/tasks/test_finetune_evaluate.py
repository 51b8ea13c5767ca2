import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tatscli.console import Reporter
from tatscli.data.normalize import standardized
from tatscli.data.views import EvalViews
from tatscli.engine.optim import build_optimizer
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.knn import knn_scores, whiten
from tatscli.nn.classifier import Classifier
from tatscli.nn.vit import build_encoder
from tatscli.recipe.load import LoadedRecipe
from tatscli.recipe.schema import Optim
from tatscli.store.reader import Store
from tatscli.system.load import load_system
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import (
    build_classifier,
    finetune,
)
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.start import choose_start
from tests.tasks.classifiers import spoiled

Load = Callable[..., LoadedRecipe]


@pytest.fixture
def pretrained(trained: Callable[..., Path]) -> Path:
    return trained("run.max_steps=2", task=pretrain)


@pytest.fixture
def finetuned(trained: Callable[..., Path]) -> Path:
    return trained(task=finetune, out="runs/tiny-finetune")


def test_finetuning_starts_from_the_encoder_and_saves_its_classes(
    load: Load, reporter: Reporter, pretrained: Path
) -> None:
    still = load(
        "finetune.optim.base_lr=1e-12", "finetune.optim.min_lr=0", "finetune.optim.warmup_epochs=0"
    )
    result = finetune(still, reporter=reporter, init=pretrained)
    assert result["run"] == "runs/tiny-finetune"
    assert {"loss", "val_top1", "best_score"} <= result.keys()
    before = load_file(pretrained / "checkpoints/last/model.safetensors")
    after = load_file(Path(result["checkpoint"]) / "model.safetensors")
    encoder = [name for name in before if name.startswith("encoder.")]
    assert len(encoder) > 80
    for name in encoder:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6)
    meta = json.loads((Path(result["checkpoint"]) / "meta.json").read_text())
    assert (meta["kind"], meta["class_names"]) == ("finetuned", ["down", "left", "right"])
    assert Path(meta["init"]).name == "step-0000002"


def test_finetuning_resumes_bit_equal(load: Load, reporter: Reporter) -> None:
    finetune(load(), reporter=reporter, init=None, out="runs/straight")
    finetune(load("run.max_steps=3"), reporter=reporter, init=None, out="runs/halves")
    finetune(load(), reporter=reporter, init=None, out="runs/halves", resume=True)
    first, second = (
        load_file(Path(f"runs/{name}/checkpoints/last/model.safetensors"))
        for name in ("straight", "halves")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_learns_the_videos_it_is_shown(load: Load, reporter: Reporter) -> None:
    plain = "{flip: 0, rand_augment: 0, erasing: 0, mixup: 0, cutmix: 0, crop_scale: [0.9, 1]}"
    loaded = load(
        f"finetune.augment={plain}", "finetune.optim.epochs=30", "finetune.val_every=30",
        "finetune.optim.base_lr=4e-2", "finetune.optim.warmup_epochs=5",
    )  # fmt: skip
    run = finetune(loaded, reporter=reporter, init=None)["run"]
    # Twelve videos are told apart; that is memory, not motion, and all this test is about.
    assert evaluate(run, reporter=reporter, overrides=["evaluate.split=train"])["top1"] >= 0.65


def test_evaluation_equals_averaging_softmax_by_hand(
    load: Load, reporter: Reporter, finetuned: Path, store: Path
) -> None:
    result = evaluate(
        finetuned, reporter=reporter, overrides=["evaluate.segments=2", "evaluate.crops=3"]
    )
    assert (result["videos"], result["views"]) == (6, 36)
    recipe = load().recipe
    opened = Store.open(store)
    rows = opened.part("val")
    views = EvalViews(opened, rows, recipe.data, sampling=recipe.data.sampling, segments=2, crops=3)
    model = Classifier(build_encoder(recipe.model, recipe.grid), 3)
    model.load_state_dict(load_file(finetuned / "checkpoints/last/model.safetensors"))
    model.eval()
    right = 0
    for place, row in enumerate(rows):
        scores = torch.zeros(3)
        for view in range(6):
            (sample,) = views[place * 6 + view]
            video = standardized(sample.video_CTHW[None], recipe.data.mean, recipe.data.std)
            with torch.no_grad():
                scores += model(video)[0].softmax(dim=0) / 6
        right += int(scores.argmax()) == opened.rows[row].label
    assert result["top1"] == pytest.approx(right / 6)
    assert sum(map(sum, result["confusion"])) == 6
    written = json.loads(Path(result["results"]).read_text())
    assert written == json.loads(json.dumps(result))
    assert Path(result["results"]) == finetuned / "results/finetuned-val-2x3.json"


def test_neighbours_need_no_classifier(reporter: Reporter, pretrained: Path) -> None:
    before = load_system(pretrained)[1].encoder.state_dict()
    result = evaluate(pretrained, reporter=reporter, protocol="knn")
    assert (result["videos"], result["views"], result["protocol"]) == (6, 6, "knn")
    after = load_system(pretrained)[1].encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("pool", "groups"), [("clip", 1), ("slice", 4), ("token", 64)])
def test_neighbours_see_the_means_of_runs_of_tokens(
    load: Load,
    reporter: Reporter,
    pretrained: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: str,
    groups: int,
) -> None:
    seen: dict[str, torch.Tensor] = {}

    def spy(query_RD: torch.Tensor, stored_QD: torch.Tensor, *args: Any, **kw: Any) -> torch.Tensor:
        seen.update(asked=query_RD, stored=stored_QD)
        return knn_scores(query_RD, stored_QD, *args, **kw)

    monkeypatch.setattr("tatscli.tasks.frozen.knn_scores", spy)
    words = [f"evaluate.knn.pool={pool}"]
    evaluate(pretrained, reporter=reporter, protocol="knn", overrides=words)
    recipe, opened = load().recipe, Store.open(store)
    encoder = load_system(pretrained)[1].encoder
    for split, key in (("train", "stored"), ("val", "asked")):
        views = EvalViews(opened, opened.part(split), recipe.data, sampling=recipe.data.sampling)
        for place, feature in enumerate(seen[key]):
            video = views[place][0].video_CTHW[None]
            clip = standardized(video, recipe.data.mean, recipe.data.std)
            with torch.no_grad():
                tokens = encoder(encoder.embed(encoder.cubes(clip)))[0]
            run = len(tokens) // groups
            by_hand = [sum(tokens[i * run : (i + 1) * run]) / run for i in range(groups)]
            torch.testing.assert_close(feature, torch.cat(by_hand), rtol=1e-4, atol=1e-4)
    plain = dict(seen)
    evaluate(
        pretrained, reporter=reporter, protocol="knn", overrides=[*words, "evaluate.knn.whiten=3"]
    )
    expected = whiten(plain["stored"], plain["asked"], 3)
    for key, white in zip(("stored", "asked"), expected, strict=True):
        assert seen[key].shape[1] == 3 < plain[key].shape[1]
        torch.testing.assert_close(seen[key], white)


def test_a_pretrained_run_cannot_be_evaluated_as_a_classifier(
    reporter: Reporter, pretrained: Path
) -> None:
    with pytest.raises(CheckpointError, match="pretrained run: it has no classifier") as error:
        evaluate(pretrained, reporter=reporter)
    assert "tats finetune" in str(error.value.hint)


def test_a_classifier_has_no_mask_to_look_at(finetuned: Path) -> None:
    with pytest.raises(CheckpointError, match="no mask or decoder"):
        load_system(finetuned)


def test_a_damaged_video_stops_the_evaluation(
    reporter: Reporter, finetuned: Path, store: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(store, broken)
    for shard in (broken / "shards").iterdir():
        content = bytearray(shard.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        for place in range(start, len(content) - 2):
            if content[place : place + 3] == b"\xff\xd8\xff":  # the start of every JPEG
                content[place : place + 3] = b"\0\0\0"
        shard.write_bytes(content)
    with pytest.raises(DataError, match=r"val/.*\.mp4"):
        evaluate(finetuned, reporter=reporter, overrides=[f"data.store={broken}"])


def test_other_classes_are_refused(
    reporter: Reporter, finetuned: Path, store: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other)
    facts = json.loads((other / "dataset.json").read_text())
    facts["class_names"] = ["a", "b", "c"]
    (other / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="are not those that the run was trained on"):
        evaluate(finetuned, reporter=reporter, overrides=[f"data.store={other}"])


def test_videos_without_labels_cannot_be_finetuned_on(
    load: Load, reporter: Reporter, store: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(store, bare)
    rows = [json.loads(line) for line in (bare / "manifest.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"label": None}) + "\n" for row in rows)
    (bare / "manifest.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"12 of 12 videos .* have no label, such as `train/"):
        finetune(load(f"data.store={bare}"), reporter=reporter, init=None)


def test_where_finetuning_starts_and_ends(load: Load, pretrained: Path, finetuned: Path) -> None:
    loaded = load()

    def chosen(run: Path | None, **options: Any) -> tuple[Path | None, Path]:
        return choose_start(
            loaded, run, **({"init": None, "scratch": False, "resume": False} | options)
        )

    assert chosen(None) == (Path("runs/tiny"), Path("runs/tiny-finetune"))
    assert chosen(pretrained) == (pretrained, Path("runs/tiny-finetune"))
    assert chosen(None, init=Path("x")) == (Path("x"), Path("runs/tiny-finetune"))
    assert chosen(None, scratch=True) == (None, Path("runs/tiny-scratch"))
    assert chosen(Path("a/b"), scratch=True) == (None, Path("a/b-scratch"))
    assert chosen(finetuned, resume=True) == (None, finetuned)
    with pytest.raises(UsageError, match="cannot be combined"):
        chosen(None, init=Path("x"), scratch=True)
    shutil.rmtree(pretrained)
    with pytest.raises(UsageError, match="no pretrained run in `runs/tiny`"):
        chosen(None)


def test_a_finetuning_run_resumes_itself_and_remembers_its_origin(
    load: Load, reporter: Reporter, pretrained: Path, cli: Callable[..., Any]
) -> None:
    finetune(load("run.max_steps=1"), reporter=reporter, init=pretrained)
    outcome = cli("finetune", "runs/tiny-finetune", "run.max_steps=null", "--resume", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json()["steps"] == 4
    assert "random weights" not in outcome.stderr
    meta = json.loads(Path("runs/tiny-finetune/checkpoints/last/meta.json").read_text())
    assert Path(meta["init"]).parent.parent.name == pretrained.name


def test_layer_decay_gives_the_published_factors(load: Load) -> None:
    """VideoMAE: decay ** (depth + 1 - layer), 1 for the head."""
    model = build_classifier(load().recipe, classes=3)
    optimizer = build_optimizer(
        model, Optim(), layer_of=model.layer_of, layers=model.layers, layer_decay=0.5
    )
    factors = {
        name: group["lr_scale"]
        for name, parameter in model.named_parameters()
        for group in optimizer.param_groups
        if any(parameter is other for other in group["params"])
    }
    assert factors["encoder.patch_embed.proj.weight"] == 0.5**7
    assert factors["encoder.blocks.0.attn.q_bias"] == 0.5**6
    assert factors["encoder.blocks.5.mlp.fc1.weight"] == 0.5
    assert factors["fc_norm.weight"] == factors["head.weight"] == factors["head.bias"] == 1


@pytest.mark.slow
def test_two_ranks_evaluate_as_one_does(
    reporter: Reporter,
    finetuned: Path,
    store: Path,
    tmp_path: Path,
    tats: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Also about the video that cannot be read: one rank meets it, both leave it out."""
    bad = spoiled(store, tmp_path / "bad", {"val/left/0.mp4": [11]})
    words = ["evaluate.segments=2", f"data.store={bad}"]
    alone = evaluate(finetuned, reporter=reporter, overrides=words, skip_bad=True)
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617", "-m")
    both = tats("evaluate", finetuned, *words, "--skip-bad", "--json", launch=launch)
    assert both.returncode == 0, both.stderr
    result = json.loads(both.stdout)
    for key in ("top1", "top5", "videos", "views", "confusion", "results", "skipped", "bootstrap"):
        assert result[key] == alone[key]
    assert [one["video"] for one in result["skipped"]] == ["val/left/0.mp4"]
    assert (result["videos"], result["views"]) == (5, 10)


def test_best_is_refused_where_nothing_was_scored(load: Load, reporter: Reporter) -> None:
    run = finetune(load("finetune.val_split=null"), reporter=reporter, init=None)["run"]
    with pytest.raises(CheckpointError, match="has no `best` checkpoint"):
        evaluate(run, reporter=reporter, prefer="best")


def test_a_result_is_not_written_over_a_folder(
    reporter: Reporter, finetuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        evaluate(finetuned, reporter=reporter, out=tmp_path)
