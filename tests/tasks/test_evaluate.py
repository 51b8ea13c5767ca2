"""Scores of every video against the published protocols, written here a second time: frames by
Pillow, windows and crops by slices, one view at a time."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file

from tatscli.console import Reporter
from tatscli.data.views import EvalViews
from tatscli.errors import CheckpointError, DataError
from tatscli.evaluation.scores import ViewScores
from tatscli.nn.classifier import Classifier, build_classifier
from tatscli.recipe.load import load_recipe
from tatscli.store.reader import Store
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.evaluate_tokenizer import evaluate_tokenizer
from tatscli.tasks.finetune import Finetuning
from tests.small_runs import tiny_recipe
from tests.tasks.classifiers import save_classifier, spoiled, unprepared
from tests.tasks.varied import FRAMES, LENGTHS, SIDE, STRIDE
from tests.tokenizer.saved import save_tokenizer


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
