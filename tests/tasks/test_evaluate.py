"""Scores of every video against the published protocols, written here a second time: frames by
Pillow, windows and crops by slices, one view at a time."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file

from tatscli.cli import main
from tatscli.console import Reporter
from tatscli.data.views import EvalViews
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.scores import ViewScores
from tatscli.nn.classifier import Classifier, build_classifier
from tatscli.recipe.load import load_recipe
from tatscli.recipe.schema import Run
from tatscli.store.reader import Store
from tatscli.tasks import result_files
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
from tatscli.tasks.finetune import Finetuning
from tatscli.tasks.result_files import save_result
from tatscli.tasks.results import INDIFFERENT, read_scores, results_home
from tests.clips import pan, render
from tests.small_runs import tiny_recipe
from tests.tasks.classifiers import save_classifier, spoiled, unprepared
from tests.tokenizer.saved import save_tokenizer

LENGTHS = {  # frames of the videos of each class; the same names in each folder
    "down": [16, 17, 18, 21, 24, 29, 33],
    "left": [16, 19, 20, 22, 31, 32, 40],
    "right": [23, 25, 26, 27, 28, 30],
}
MOVES = {"down": (0, 2), "left": (-2, 0), "right": (2, 0)}
FRAMES, STRIDE, SIDE = 8, 2, 48


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twenty videos of differing lengths, in three folders."""
    root = tmp_path_factory.mktemp("varied")
    for number, (name, lengths) in enumerate(LENGTHS.items()):
        for place, length in enumerate(lengths):
            clip = pan(MOVES[name], frames=length, height=48, width=64, seed=10 * number + place)
            render(root / "videos" / "val" / name / f"{place}.mp4", clip)
    words = ["prepare", root / "videos", "--out", root / "store", "--workers", "1", "-q"]
    assert main([str(word) for word in words]) == 0
    return root / "store"


@pytest.fixture(scope="module")
def run(varied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(
        varied,
        data={"frames": FRAMES, "size": SIDE, "sampling": {"mode": "dense", "stride": STRIDE}},
        evaluate={"batch_per_device": 7, "knn": {"split": "val", "neighbours": 3}},
    )
    return save_classifier(tmp_path_factory.mktemp("runs") / "tiny", recipe)


@pytest.fixture
def say() -> Reporter:
    return Reporter(quiet=True, stdout=io.StringIO(), stderr=io.StringIO())


def dense_windows(length: int, segments: int) -> list[list[int]]:
    """VideoMAE on Kinetics: the video at the stride, windows evenly from its start to its end."""
    taken = list(range(length))[::STRIDE]
    if segments == 1:
        start = (len(taken) - FRAMES) // 2
        return [taken[start:][:FRAMES]]
    step = (len(taken) - FRAMES) / (segments - 1)
    return [taken[int(k * step + 1e-9) :][:FRAMES] for k in range(segments)]


def interleaved_phases(length: int) -> list[list[int]]:
    """VideoMAE on SSv2: two times the frames, evenly, of which each clip takes every second."""
    tick = length / FRAMES
    both = sorted(
        [int(tick * x) for x in range(FRAMES)] + [int(tick / 2 + tick * x) for x in range(FRAMES)]
    )
    return [both[0::2], both[1::2]]


def reference(run: Path, store: Path, windows: Any, crops: int) -> dict[str, np.ndarray]:
    """Mean probabilities of each video of the split, by its id in the manifest."""
    opened = Store.open(store)
    recipe = tiny_recipe(store, data={"frames": FRAMES, "size": SIDE})
    model = build_classifier(recipe, classes=3).eval()
    model.load_state_dict(load_weights(run / "checkpoints/last/model.safetensors"))
    mean, std = (np.array(one) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    found = {}
    for row, record in enumerate(opened.rows):
        pictures = [
            np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))
            for jpeg in opened.jpegs(row, range(record.frames))
        ]
        spare = pictures[0].shape[1] - SIDE
        lefts = [spare // 2] if crops == 1 else [int(k * spare / (crops - 1)) for k in range(crops)]
        scores = []
        for window in windows(record.frames):
            assert len(window) == FRAMES
            for left in lefts:
                view = np.stack([pictures[frame][:, left : left + SIDE] for frame in window])
                video = torch.from_numpy((view / 255 - mean) / std).float().permute(3, 0, 1, 2)
                with torch.no_grad():
                    scores.append(model(video[None])[0].double().softmax(0).numpy())
        found[record.id] = np.mean(scores, axis=0)
    return found


@pytest.mark.parametrize(
    ("mode", "segments", "crops"), [("dense", 1, 1), ("dense", 4, 3), ("uniform", 2, 3)]
)
def test_scores_are_the_published_protocols(
    run: Path, varied: Path, say: Reporter, mode: str, segments: int, crops: int
) -> None:
    words = [f"evaluate.segments={segments}", f"evaluate.crops={crops}"]
    if mode == "uniform":
        words.append("evaluate.sampling={mode: uniform}")
    result = evaluate(run, reporter=say, overrides=words)
    windows = interleaved_phases if mode == "uniform" else lambda n: dense_windows(n, segments)
    expected = reference(run, varied, windows, crops)
    views = 20 * segments * crops
    assert (result["videos"], result["views"], result["skipped"]) == (20, views, [])

    file = Path(result["results"]).with_name(result["scores_file"])
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        texts = opened.metadata()
    videos = json.loads(texts["videos"])
    assert json.loads(texts["class_names"]) == ["down", "left", "right"]
    assert {name: str(one.dtype) for name, one in tensors.items()} == {
        "scores": "float32", "label": "int64", "row": "int64", "source": "int64",
    }  # fmt: skip
    rows = Store.open(varied).rows
    assert videos == [row.id for row in rows] == [rows[row].id for row in tensors["row"]]
    assert {"val/down/0.mp4", "val/left/0.mp4"} <= set(videos)
    assert tensors["label"].tolist() == [row.label for row in rows]
    found = dict(zip(videos, tensors["scores"], strict=True))
    for name, scores in expected.items():
        np.testing.assert_allclose(found[name], scores, atol=2e-5)
    assert np.std([one for one in expected.values()], axis=0).max() > 0.02  # they differ by video
    right = [np.argmax(expected[row.id]) == row.label for row in rows]
    assert result["top1"] == pytest.approx(np.mean(right))
    per_class = [np.mean([r for r, row in zip(right, rows, strict=True) if row.label == label])
                 for label in range(3)]  # fmt: skip
    assert result["mean_class"] == pytest.approx(np.mean(per_class))


def test_views_that_show_the_same_are_looked_at_once_and_count_as_often(
    run: Path, varied: Path, say: Reporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pictures of the view's aspect have one crop, and videos of 16 frames one window of 8 at
    stride 2: their six views are one."""
    seen: list[int] = []
    forward = Classifier.forward

    def spy(self: Classifier, video: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(len(video))
        return forward(self, video, *more)

    monkeypatch.setattr(Classifier, "forward", spy)
    words = ["data.size=[48,64]", "evaluate.segments=2", "evaluate.crops=3"]
    few = evaluate(run, reporter=say, overrides=words, out=tmp_path / "few.json")
    looked = sum(seen)
    whole = LENGTHS["down"] + LENGTHS["left"] + LENGTHS["right"]
    assert looked - 1 == sum(1 if length == 16 else 2 for length in whole)  # 1 counts FLOPs
    seen.clear()
    monkeypatch.setattr(EvalViews, "alike", lambda self, row: list(range(self.views)))
    every = evaluate(run, reporter=say, overrides=words, out=tmp_path / "every.json")
    assert sum(seen) - 1 == every["views"] == few["views"] == 120
    one, two = (load_file(tmp_path / f"{name}.safetensors") for name in ("few", "every"))
    np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-6)


def test_a_bad_video_is_an_error_and_with_skip_bad_left_out_wholly(
    run: Path, varied: Path, say: Reporter, tmp_path: Path
) -> None:
    """`down/6`'s first window can be read and its last cannot; of `left/2` nothing can."""
    bad = spoiled(varied, tmp_path / "bad", {"val/down/6.mp4": [32], "val/left/2.mp4": None})
    words = [f"data.store={bad}", "evaluate.segments=3"]
    whole = evaluate(run, reporter=say, overrides=words[1:], out=tmp_path / "whole.json")
    with pytest.raises(DataError, match=r"`val/down/6\.mp4` cannot be read"):
        evaluate(run, reporter=say, overrides=words)
    result = evaluate(run, reporter=say, overrides=words, skip_bad=True, out=tmp_path / "part.json")
    assert (result["videos"], result["views"]) == (18, 54)
    assert [one["video"] for one in result["skipped"]] == ["val/down/6.mp4", "val/left/2.mp4"]
    assert all("cannot be read" in one["reason"] for one in result["skipped"])
    before, after = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "part"))
    kept = np.isin(before["row"], after["row"])
    assert kept.sum() == 18
    np.testing.assert_allclose(before["scores"][kept], after["scores"], atol=1e-6)
    assert sum(map(sum, result["confusion"])) == 18 and len(whole["skipped"]) == 0

    for protocol in ("knn", "linear"):
        more = [
            "evaluate.probe.split=val",
            "evaluate.probe.epochs=1",
            "evaluate.probe.rates=[1e-3]",
        ]
        found = evaluate(
            run,
            reporter=say,
            protocol=protocol,  # type: ignore[arg-type]
            overrides=[*words, *more, "evaluate.probe.decays=[0]"],
            skip_bad=True,
            out=tmp_path / f"{protocol}.json",
        )
        assert (found["videos"], found["train_videos"]) == (18, 18)
        assert found["train_skipped"] == found["skipped"] == result["skipped"]
        said = say.stderr.getvalue()  # type: ignore[attr-defined]
        assert "2 of 20 videos are left out" in said
        assert "2 of 20 training videos are left out" in said

    every = spoiled(varied, tmp_path / "every", {row.id: None for row in Store.open(varied).rows})
    with pytest.raises(
        DataError, match="none of the 20 videos can be read; the first: `val/down/0"
    ):
        evaluate(run, reporter=say, overrides=[f"data.store={every}"], skip_bad=True)


@pytest.mark.parametrize("protocol", ["finetuned", "knn", "linear"])
def test_scores_that_are_not_finite_are_an_error(
    run: Path, say: Reporter, tmp_path: Path, protocol: Any
) -> None:
    sick = tmp_path / "sick"
    (sick / "checkpoints").mkdir(parents=True)
    last = sick / "checkpoints" / "last"
    last.mkdir()
    (last / "meta.json").write_bytes((run / "checkpoints/last/meta.json").read_bytes())
    weights = load_weights(run / "checkpoints/last/model.safetensors")
    weights["encoder.blocks.1.mlp.fc1.bias"][3] = torch.inf
    save_file(weights, last / "model.safetensors")
    words = ["evaluate.segments=2", "evaluate.probe.split=val"]
    with pytest.raises(
        CheckpointError, match=r"view 0 of `val/down/0\.mp4` are not finite"
    ) as error:
        evaluate(sick, reporter=say, protocol=protocol, overrides=words)
    assert "earlier checkpoint" in str(error.value.hint)
    assert not (sick / "results").exists()


def test_a_video_that_only_itself_could_vote_on_is_an_error(
    run: Path, varied: Path, say: Reporter, tmp_path: Path
) -> None:
    ids = [row.id for row in Store.open(varied).rows]
    one = unprepared(varied, tmp_path / "one", ids[1:])
    words = [f"data.store={one}"]
    with pytest.raises(DataError, match=rf"`{ids[0]}` has no neighbours: it is the only video"):
        evaluate(run, reporter=say, protocol="knn", overrides=words, skip_bad=True)


def test_videos_that_could_not_be_prepared_are_an_error_or_counted(
    run: Path, varied: Path, say: Reporter, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    gone = ["val/down/2.mp4", "val/left/0.mp4"]
    words = [f"data.store={unprepared(varied, tmp_path / 'failed', gone)}"]
    message = (
        r"2 of 20 videos in split `val` of .* prepared; the first: `val/down/2\.mp4`: no frames"
    )
    with pytest.raises(DataError, match=message) as error:
        evaluate(run, reporter=say, overrides=words)
    assert "--skip-bad" in str(error.value.hint)
    outcome = cli("evaluate", run, *words, "--skip-bad", "--protocol", "knn")
    assert outcome.code == 0, outcome.stderr
    assert "18 videos, 18 views, 2 skipped" in outcome.stdout
    assert "2 of 20 videos are left out" in outcome.stderr
    result = json.loads(Path(outcome.stderr.split("wrote ")[1].strip()).read_text())
    left_out = [
        {"video": name, "reason": f"`{name}` could not be prepared: no frames"} for name in gone
    ]
    assert result["skipped"] == result["train_skipped"] == left_out
    assert (result["videos"], result["train_videos"]) == (18, 18)


def test_validation_scores_that_are_not_finite_are_no_score(
    monkeypatch: pytest.MonkeyPatch, say: Reporter
) -> None:
    bad = ViewScores(torch.arange(2), torch.tensor([0, 1]), torch.full((2, 3), torch.nan))
    monkeypatch.setattr("tatscli.tasks.finetune.score_views", lambda *_, **__: bad)
    stage: Any = SimpleNamespace(
        settings=SimpleNamespace(optim=SimpleNamespace(epochs=1), val_split="val", val_every=1),
        store=SimpleNamespace(class_groups={}),
        **dict.fromkeys(("scored", "val_views", "recipe", "val_drop")),
    )
    here: Any = SimpleNamespace(reporter=say)
    value, metrics = Finetuning.score(stage, 1, here) or (0, {})
    assert value is None and math.isnan(metrics["val_top1"])
    assert "not finite" in say.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_tokenizer_is_held_to_the_same(varied: Path, say: Reporter, tmp_path: Path) -> None:
    config = load_recipe("tokenizer/small").recipe.tokenizer
    assert config is not None
    run = save_tokenizer(tmp_path / "run", config, size=32)
    meta = run / "checkpoints/last/meta.json"
    facts = json.loads(meta.read_text()) | {"store_fingerprint": "f", "tats": "0.1.0"}
    meta.write_text(json.dumps(facts))
    bad = spoiled(varied, tmp_path / "bad", {"val/left/2.mp4": None})
    words = [f"data.store={bad}", "data.workers=0", "run.device=cpu", "evaluate.crops=3"]
    with pytest.raises(DataError, match=r"`val/left/2\.mp4` cannot be read"):
        evaluate_tokenizer(run, reporter=say, overrides=words)
    result = evaluate_tokenizer(run, reporter=say, overrides=words, skip_bad=True)
    assert (result["videos"], result["views"]) == (19, 57)
    assert [one["video"] for one in result["skipped"]] == ["val/left/2.mp4"]
    assert {"command", "overrides", "started", "torch", "device"} <= result.keys()
    other = evaluate_tokenizer(run, reporter=say, overrides=[*words, f"data.store={varied}"])
    assert other["results"] != result["results"] and Path(result["results"]).exists()
    weights = load_weights(meta.with_name("model.safetensors"))
    name = next(name for name in weights if name.startswith("decoder") and name.endswith("bias"))
    weights[name][0] = torch.nan
    save_file(weights, meta.with_name("model.safetensors"))
    with pytest.raises(CheckpointError, match=r"view 0 of `val/down/0\.mp4` are not finite"):
        evaluate_tokenizer(run, reporter=say, overrides=words)


def test_frozen_features_are_measured_by_the_groups_of_the_store_not_of_the_run(
    varied: Path, say: Reporter, tmp_path: Path
) -> None:
    home = save_classifier(
        tmp_path / "run",
        tiny_recipe(varied, evaluate={"knn": {"split": "val", "neighbours": 3}}),
    )
    meta = home / "checkpoints" / "last" / "meta.json"
    facts = json.loads(meta.read_text())
    facts |= {"class_names": ["a", "b"], "class_groups": {"verb": {"names": ["x"], "of": [0, 0]}}}
    meta.write_text(json.dumps(facts))
    assert "group_top1" not in evaluate(home, reporter=say, protocol="knn")


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
