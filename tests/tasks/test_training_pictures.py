"""The pictures that a tokenizer's training leaves in its run, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import DecodeError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.tasks import training_pictures as module
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.training_pictures import TokenizerPictures, TrainingPictures
from tatscli.tokenizer.load import open_run
from tatscli.visualize.codes import Coder

Load = Callable[..., LoadedRecipe]
RECIPE = """
data:
  {{store: {store}, split: train, frames: 8, size: 32, sampling: {{mode: dense, stride: 1}},
    workers: 0}}
tokenizer:
  {{kind: adaptive, stride: 8, patch: 4, widths: [8, 8], blocks: 1, levels: [5, 5], keep: 20,
    scorer_width: 4, ema: 0.8, topk: perturbed, samples: 2}}
optim: {{epochs: 4, total_batch: 6, batch_per_device: 6, base_lr: 0.2, warmup_epochs: 0}}
run: {{log_every: 1, save_every: 0.5, device: cpu}}
"""
IMAGE = "tokenizer={kind: vq, stride: 8, patch: 4, widths: [8, 8], blocks: 1, codes: 16}"


@pytest.fixture
def load(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "coder.yaml"
    path.write_text(RECIPE.format(store=store))
    return lambda *overrides: load_recipe(path, overrides)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[str], list[str]]]]:
    """Title and labels of every picture."""
    seen = []

    def spy(title, captions, rows, columns):
        seen.append((title, [row.label for row in rows]))
        return compose(title, captions, rows, columns)

    compose = module.compose
    monkeypatch.setattr(module, "compose", spy)
    return seen


def names(run: str) -> list[str]:
    return sorted(path.name for path in Path(run, "pictures").iterdir())


def weights(run: str) -> dict[str, Tensor]:
    checkpoint = find_checkpoint(Path(run))
    parts = [name for name in ("model", "trained", "optimizer") if checkpoint.has(name)]
    return {f"{part}/{name}": value for part in parts
            for name, value in checkpoint.tensors(part).items()}  # fmt: skip


def same(one: str, two: str) -> bool:
    first, second = weights(one), weights(two)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.mark.parametrize("changes", [(), (IMAGE,)], ids=["adaptive", "image"])
def test_a_training_with_pictures_is_bit_equal_to_one_without(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]
) -> None:
    pretrain(load(*changes), reporter=reporter, out="runs/with")
    assert names("runs/with") == [f"pass-000{number}.png" for number in (1, 2, 3, 4)]
    pretrain(load(*changes, "run.max_steps=5"), reporter=reporter, out="runs/halves")
    assert names("runs/halves") == ["pass-0001.png", "pass-0002.png"]
    pretrain(load(*changes), reporter=reporter, out="runs/halves", resume=True)
    for name in names("runs/with"):
        one, two = (Path("runs", run, "pictures", name).read_bytes() for run in ("with", "halves"))
        assert one == two
    monkeypatch.setattr(TrainingPictures, "due", lambda self, epoch: False)
    pretrain(load(*changes), reporter=reporter, out="runs/without")
    assert not Path("runs/without/pictures").exists()
    assert same("runs/with", "runs/without")
    assert same("runs/with", "runs/halves")


def test_it_shows_the_average_at_work_on_the_first_video(
    load: Load,
    reporter: Reporter,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[tuple[list[str], list[str]]],
) -> None:
    seen = []

    class Spy(Coder):
        def look(self, video_TCHW: Tensor):
            assert not self.tokenizer.training
            seen.append((video_TCHW, super().look(video_TCHW)))
            return seen[-1][1]

    monkeypatch.setattr(module, "Coder", Spy)
    loaded = load("optim.epochs=2")
    pretrain(loaded, reporter=reporter, out="runs/one")
    (video_TCHW, _), (again_TCHW, coding) = seen
    assert torch.equal(video_TCHW, again_TCHW) and len(video_TCHW) == 8
    (title, labels), (last, _) = drawn
    assert labels == ["input", "reconstruction", "scores", "kept codes", "codes"]
    assert title[0].startswith("train/") and "after pass 1 of 2" in title
    assert "after pass 2 of 2" in last
    # What a checkpoint calls the model, which is the average, makes the same of it.
    tokenizer, _, _ = open_run(Path("runs/one"))
    right = tokenizer.eval().reconstruct(video_TCHW.transpose(0, 1)[None] / 255)
    torch.testing.assert_close(coding.scores_thw, right.scores_Bthw[0])
    torch.testing.assert_close(coding.reconstruction_TCHW, right.video_BCTHW[0].transpose(0, 1))
    with av.open("runs/one/pictures/pass-0002.png") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape[1] > 4 * 192 and len(np.unique(picture)) > 50


def test_a_long_training_leaves_about_twenty(
    load: Load, store: Path, reporter: Reporter, drawn: list[tuple[list[str], list[str]]]
) -> None:
    for epochs, most in ((1, 1), (20, 20), (21, 11), (1000, 20), (1001, 20)):
        recipe = load(f"optim.epochs={epochs}", "optim.warmup_epochs=0").recipe
        pictures = TokenizerPictures(Path("unused"), module.Store.open(store), [0], recipe)
        due = [epoch for epoch in range(1, epochs + 1) if pictures.due(epoch)]
        assert len(due) == most and due[-1] == epochs
    many = load(IMAGE, "data.frames=11", "optim.epochs=1")
    pretrain(many, reporter=reporter, out="runs/many")
    ((title, labels),) = drawn
    assert not any("slices" in line for line in title)  # no more are coded than have a column
    assert labels == ["input", "reconstruction", "codes"]


def test_a_video_that_cannot_be_read_costs_no_training(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self, item: int):
        raise DecodeError("`train/left/0` cannot be read: of no use")

    monkeypatch.setattr(module.EvalViews, "__getitem__", broken)
    pretrain(load("optim.epochs=2"), reporter=reporter, out="runs/blind")
    assert not Path("runs/blind/pictures").exists()
    words = reporter.stderr.getvalue()
    assert words.count("no pictures of this training: `train/left/0` cannot be read") == 1
