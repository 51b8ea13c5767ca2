"""The pictures of masks that trackers are shown, and that they change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tatscli.console import Reporter
from tatscli.engine.track import TRACKERS
from tatscli.errors import DecodeError, RecipeError, UsageError
from tatscli.recipe.load import LoadedRecipe
from tatscli.store.reader import Store
from tatscli.tasks import training_pictures as module
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.watch import part_watched
from tests.tasks.runs import assert_equal, metrics

Load = Callable[..., LoadedRecipe]
TRACKED = ("run.track=[tensorboard]", "run.track_pictures=2")
TINY = ("model={width: 32, depth: 2, heads: 2, patch: 8}",)


class Memory:
    """A tracker that keeps what it is told."""

    def __init__(self, kept: list[Memory]) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, str, np.ndarray]] = []
        kept.append(self)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        self.pictures.append((step, name, image_HWC))

    def close(self) -> None:
        pass


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    kept: list[Memory] = []
    monkeypatch.setitem(TRACKERS, "tensorboard", lambda *given: Memory(kept))
    return kept


def told(run: str) -> list[tuple[int, dict[str, float]]]:
    """What `metrics.jsonl` says, as trackers are told it."""
    return [
        (line.pop("step"), {name: one for name, one in line.items() if one is not None})
        for line in metrics(run)
    ]


def read(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize(
    "changes",
    [(), pytest.param(("mask={kind: mgm}", "run.watch={every: 2}"), marks=pytest.mark.slow)],
    ids=["tats", "mgm"],
)
def test_a_pretraining_shows_masks_and_is_bit_equal_to_one_that_does_not(
    load: Load, reporter: Reporter, trackers: list[Memory], changes: tuple[str, ...]
) -> None:
    tracked = load(*TINY, *changes, *TRACKED)
    pretrain(tracked, reporter=reporter, out="runs/with")
    pretrain(load(*TINY, *changes), reporter=reporter, out="runs/without")
    assert_equal("runs/with", "runs/without", "model", "optimizer")
    assert not Path("runs/without/pictures").exists()
    (one,) = trackers
    assert one.told == told("runs/with")
    steps = 2 if not changes else (len(metrics("runs/with")) - 3) // 5
    assert [(step, name) for step, name, _ in one.pictures] == [
        (steps * epoch, "pictures/masks") for epoch in (2, 4, 5)
    ]
    for epoch, (_, _, image_HWC) in zip((2, 4, 5), one.pictures, strict=True):
        assert np.array_equal(read(Path(f"runs/with/pictures/pass-{epoch:04d}.png")), image_HWC)
        assert image_HWC.dtype == np.uint8 and image_HWC.shape[1] > 4 * 192
    first, last = one.pictures[0][2], one.pictures[-1][2]
    assert not np.array_equal(first, last)


def test_it_draws_the_same_mask_of_a_video_that_is_watched(
    load: Load, reporter: Reporter, trackers: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spy(title: list[str], captions: list[str], rows: list[Any], places: list[int]) -> Any:
        seen.append((title, [row.label for row in rows], rows[1].panels_TYX3, rows[2].panels_TYX3))
        return compose(title, captions, rows, places)

    compose = module.compose
    monkeypatch.setattr(module, "compose", spy)
    loaded = load(*TINY, *TRACKED, "mask={kind: tube}", "run.watch={share: 0.1, every: 9}",
                  "optim.epochs=2", "run.track_pictures=1")  # fmt: skip
    pretrain(loaded, reporter=reporter, out="runs/one")
    (title, labels, visible, guessed), (last, _, same, other) = seen
    assert title[1:] == ["tube mask, ratio 0.9", "after pass 1 of 2"]
    assert last == [*title[:2], "after pass 2 of 2"]
    assert labels == ["input", "visible tokens", "reconstruction", "error", "motion"]
    assert np.array_equal(visible, same) and not np.array_equal(guessed, other)
    opened, recipe = Store.open(loaded.recipe.data.store), loaded.recipe
    _, held = part_watched(opened, opened.part("train"), recipe.run.watch)
    assert title[0] == opened.rows[held[0]].id


def test_fine_tuning_is_tracked_and_draws_nothing(
    load: Load, reporter: Reporter, trackers: list[Memory]
) -> None:
    loaded = load(*TINY, *TRACKED, "finetune.val_split=val")
    finetune(loaded, reporter=reporter, init=None, out="runs/fine")
    (one,) = trackers
    assert one.told == told("runs/fine") and not one.pictures
    assert any("val_top1" in numbers for _, numbers in one.told)


def test_a_video_that_cannot_be_read_costs_no_training(
    load: Load, reporter: Reporter, trackers: list[Memory], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, item: int) -> None:
        raise DecodeError("`train/left/0` cannot be read: of no use")

    monkeypatch.setattr(module.EvalViews, "__getitem__", broken)
    loaded = load(*TINY, *TRACKED, "optim.epochs=2", "mask={kind: tube}")
    assert pretrain(loaded, reporter=reporter, out="runs/blind")["steps"] == 4
    assert not trackers[0].pictures
    assert reporter.stderr.getvalue().count("no pictures of this training") == 1  # type: ignore[attr-defined]


def test_what_cannot_be_tracked_is_refused_before_anything_is_written(
    load: Load, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tatscli.engine.track.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"`run\.track: \[tensorboard\]` needs the package"):
        pretrain(load(*TINY, *TRACKED), reporter=reporter)
    assert not Path("runs").exists()
    with pytest.raises(RecipeError, match=r"run\.track"):
        load("run.track=[mlflow]")
