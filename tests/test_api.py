"""`tatscli.load`: a run as a torch module, held against evaluation, features and plain loops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tatscli
from tatscli.api import VideoModel
from tatscli.data.normalize import standardized
from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.data.views import EvalViews
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.evaluation.features import PooledFeatures
from tatscli.recipe.schema import Sampling
from tatscli.store.reader import Store
from tatscli.video.frames import read_frames
from tests.clips import pan
from tests.small_runs import NAMES, render_films, save_run, store_of, tiny_recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    recipe = tiny_recipe()
    save_run(folder / "tuned", recipe, seed=1, best=True)
    save_run(folder / "tuned", recipe, seed=2, step=2)
    save_run(folder / "pretrained", recipe, names=None)
    store_of(render_films(folder / "videos"), folder / "store")
    return folder


@pytest.fixture(scope="module")
def model(home: Path) -> VideoModel:
    return tatscli.load(home / "tuned", device="cpu")


@pytest.fixture(scope="module")
def pretrained(home: Path) -> VideoModel:
    return tatscli.load(home / "pretrained", device="cpu")


@pytest.fixture(scope="module")
def video_TCHW(home: Path) -> torch.Tensor:
    store = Store.open(home / "store")
    return decode_jpegs(store.jpegs(0, range(store.rows[0].frames)))


def film(home: Path, name: str = "falls") -> Path:
    return home / "videos" / "val" / name / "a.mp4"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tatscli; tatscli.load; print({'torch', 'numpy', 'av'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_finetuned_run_gives_logits(model: VideoModel) -> None:
    assert not model.training
    assert model.class_names == NAMES
    assert model.device == torch.device("cpu")
    assert model.recipe.data.frames == 8
    video_BCTHW = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(video_BCTHW), model.network(video_BCTHW))
    assert model(video_BCTHW).shape == (2, 3)


def test_a_pretrained_run_gives_tokens_behind_the_last_norm(pretrained: VideoModel) -> None:
    assert pretrained.class_names == []
    video_BCTHW = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        tokens_BND = pretrained(video_BCTHW)
        inner_BND = pretrained.features(video_BCTHW, layer=2)
        pooled_BD = PooledFeatures(pretrained.encoder)(video_BCTHW)
    assert tokens_BND.shape == (2, 64, 32)
    assert torch.equal(tokens_BND, pretrained.encoder.norm(inner_BND))
    assert torch.equal(tokens_BND.mean(1), pooled_BD)
    embedded_BND = pretrained.encoder.embed(pretrained.encoder.cubes(video_BCTHW))
    at_0 = embedded_BND + pretrained.encoder.positions()
    assert torch.equal(pretrained.features(video_BCTHW, layer=0), at_0)
    for layer in (-1, 3):
        with pytest.raises(UsageError, match="2 blocks"):
            pretrained.features(video_BCTHW, layer=layer)


def test_last_best_and_a_checkpoint_folder(home: Path, model: VideoModel) -> None:
    best = tatscli.load(home / "tuned", device="cpu", checkpoint="best")
    again = tatscli.load(home / "tuned" / "checkpoints" / "step-0000001", device="cpu")
    assert torch.equal(best.network.head.weight, again.network.head.weight)
    assert not torch.equal(best.network.head.weight, model.network.head.weight)


def test_what_cannot_be_loaded_says_why(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        tatscli.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match="`last` or `best`"):
        tatscli.load(home / "tuned", checkpoint="first")
    with pytest.raises(UsageError, match="`cuda:99` is not available"):
        tatscli.load(home / "tuned", device="cuda:99")
    with pytest.raises(UsageError, match="`sofa` is not available"):
        tatscli.load(home / "tuned", device="sofa")
    tokenizer = save_run(tmp_path / "tokenizer", tiny_recipe(), names=None)
    meta = tokenizer / "checkpoints" / "last" / "meta.json"
    meta.write_text(meta.read_text().replace('"pretrained"', '"tokenizer"'))
    with pytest.raises(CheckpointError, match="is a tokenizer: it has no ViT encoder"):
        tatscli.load(tokenizer)
    save_run(tmp_path / "nameless", tiny_recipe(), names=[])
    with pytest.raises(CheckpointError, match="classes are called"):
        tatscli.load(tmp_path / "nameless")


def test_loading_leaves_the_random_state_alone(home: Path) -> None:
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    tatscli.load(home / "tuned", device="cpu")
    assert torch.equal(torch.randn(4), expected)


@pytest.mark.parametrize(
    ("sampling", "data"),
    [
        ({"stride": 2}, {}),
        ({"fps": 8}, {}),
        ({"mode": "uniform"}, {}),
        ({"stride": 5, "short": "loop"}, {}),
        ({"stride": 4, "indices": "videomae"}, {"size": 16, "resize": "videomae"}),
        ({"mode": "uniform", "indices": "videomae"}, {"frames": 32}),
    ],
)
def test_preprocess_makes_what_evaluation_sees(
    home: Path, video_TCHW: torch.Tensor, sampling: dict, data: dict
) -> None:
    recipe = tiny_recipe(data={"sampling": sampling, **data})
    tuned = tatscli.load(save_run(home / "sampled", recipe), device="cpu")
    frames_THWC = video_TCHW.permute(0, 2, 3, 1).numpy()
    store = Store.open(home / "store")
    for windows in (1, 3):
        views = EvalViews(store, [0], recipe.data, sampling=Sampling(**sampling), segments=windows)
        seen = torch.stack([views[item][0].video_CTHW for item in range(windows)])
        made = tuned.preprocess(frames_THWC, windows=windows, fps=25)
        assert torch.equal(made, standardized(seen, recipe.data.mean, recipe.data.std))


def test_preprocess_takes_frames_in_many_forms(model: VideoModel, video_TCHW) -> None:
    video_THWC = video_TCHW.permute(0, 2, 3, 1)
    made = model.preprocess(video_THWC)
    assert made.dtype == torch.float32
    assert made.shape == (1, 3, 8, 32, 32)
    assert torch.equal(made, model.preprocess(video_THWC.numpy()))
    assert torch.equal(made, model.preprocess(list(video_THWC.numpy())))
    # As many as the model sees are one window, each of them shown.
    eight = video_THWC[:8]
    data = model.recipe.data
    seen = standardized(
        eight.permute(3, 0, 1, 2)[None, :, :, :, 5:37].contiguous(), data.mean, data.std
    )
    assert torch.equal(model.preprocess(eight), seen)
    assert not torch.equal(model.preprocess(eight, sampled=False), seen)
    with pytest.raises(UsageError, match="must be 8 frames, not 9"):
        model.preprocess(video_THWC[:9], sampled=True)
    with pytest.raises(UsageError, match="not a video"):
        model.preprocess(video_THWC.float())


def test_frames_without_a_clock_are_refused_where_one_is_needed(home: Path) -> None:
    clocked = tatscli.load(
        save_run(home / "clock", tiny_recipe(data={"sampling": {"fps": 8}})), device="cpu"
    )
    with pytest.raises(UsageError, match="8 frames a second"):
        clocked.preprocess(np.stack(list(pan(frames=20, height=32, width=32))))


def test_preprocess_of_a_file_is_that_of_its_frames(home: Path, model: VideoModel) -> None:
    frames = [one.rgb() for one in read_frames(film(home), short_side=32, motion="none")]
    assert torch.equal(model.preprocess(film(home)), model.preprocess(frames))


def test_predictions_are_means_over_windows(home: Path, model: VideoModel) -> None:
    best = model.predict(film(home))
    assert sorted(one.name for one in best) == NAMES
    assert best == sorted(best, key=lambda one: -one.probability)
    assert sum(one.probability for one in best) == pytest.approx(1, abs=1e-6)
    assert (best[0].start, best[0].end) == (0, pytest.approx(24 / 25))
    windows = list(model.predict_windows(film(home)))
    assert [(one[0].start, one[0].end) for one in windows] == [
        (0, pytest.approx(16 / 25)), (pytest.approx(8 / 25), pytest.approx(24 / 25)),
    ]  # fmt: skip
    for one in best:
        over = [p.probability for window in windows for p in window if p.index == one.index]
        assert one.probability == pytest.approx(sum(over) / 2, abs=1e-6)
        assert model.class_names[one.index] == one.name
    (single,) = model.predict_windows(film(home), top=1, windows=1)
    with torch.no_grad():
        score_L = model(model.preprocess(film(home))).softmax(-1)[0]
    assert single[0].index == int(score_L.argmax())
    assert single[0].probability == pytest.approx(float(score_L.max()), abs=1e-6)


def test_predicting_takes_frames_too(model: VideoModel, video_TCHW: torch.Tensor) -> None:
    frames = video_TCHW.permute(0, 2, 3, 1)
    assert model.predict(frames, top=2)[0].end == pytest.approx(len(frames) / 25)
    assert model.predict(frames, top=2, fps=50)[0].end == pytest.approx(len(frames) / 50)
    assert len(model.predict(frames, top=2, windows=2, crops=3)) == 2


def test_what_cannot_be_predicted_says_why(
    home: Path, model: VideoModel, pretrained: VideoModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no classifier") as caught:
        pretrained.predict(film(home))
    assert "tats finetune" in str(caught.value.hint)
    (tmp_path / "text.mp4").write_text("no video")
    for call in (model.predict, model.preprocess):
        with pytest.raises(DataError, match=r"`.*gone\.mp4` cannot be read: no such file"):
            call(tmp_path / "gone.mp4")
        with pytest.raises(DataError, match=r"`.*text\.mp4` cannot be read: does not open"):
            call(tmp_path / "text.mp4")
