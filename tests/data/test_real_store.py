"""From a rendered video through `prepare` to batches: colours, frames and motion stay right."""

from __future__ import annotations

import io
import pickle
import shutil
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from tatscli.console import Reporter
from tatscli.data.dataset import PretrainClips
from tatscli.data.labelled import FinetuneClips
from tatscli.data.loader import evaluation_batches, training_batches
from tatscli.data.view import corner_crop
from tatscli.data.views import EvalViews
from tatscli.errors import DataError
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Data, Finetune, Optim, Sampling
from tatscli.seeding import random_of
from tatscli.store.pool import run_in_order
from tatscli.store.prepare import prepare
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tests.clips import CLEAN_VECTORS, pan, render, static

STEP = (3, -2)
DATA = Data(store="x", frames=4, size=64, sampling=Sampling(stride=2), flip=0.5, repeats=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, three videos, stored at three quarters of their size."""
    source = tmp_path_factory.mktemp("videos")
    render(source / "move" / "a.mp4", pan(STEP), options=CLEAN_VECTORS)
    render(source / "move" / "b.mp4", pan(STEP, seed=1, frames=5), options=CLEAN_VECTORS)
    render(source / "rest" / "c.mp4", static(frames=20), options=CLEAN_VECTORS)
    out = source.parent / f"{source.name}-store"
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO())
    run = partial(run_in_order, workers=1)
    prepare(find_sources(source), out, Settings(short_side=144), run=run, reporter=reporter)
    return out


@pytest.fixture
def store(folder: Path) -> Store:
    return Store.open(folder)


@pytest.mark.parametrize("size", [(64, 64), (64, 112), (112, 48)])
def test_motion_is_right_within_a_tenth_of_a_pixel_after_every_view(
    store: Store, size: tuple[int, int]
) -> None:
    """The field of a pan holds wherever the crop lies, however it is scaled or mirrored."""
    data = Data.model_validate({**DATA.model_dump(), "size": size})
    clips = PretrainClips(store, store.part(None)[:2], data, patch=16, seed=0)
    flips, checked = set(), 0
    for epoch in range(30):
        for position, row in enumerate(clips.rows):
            for sample in clips[epoch, position]:
                rng = random_of("view", 0, epoch, row, sample.view)
                view = corner_crop(144, 192, size, scales=DATA.crop_scales, flip=0.5, rng=rng)
                # Two stored frames from one of the clip to the next.
                x = 2 * STEP[0] * 0.75 * size[1] / view.crop_width * (-1 if view.flip else 1)
                y = 2 * STEP[1] * 0.75 * size[0] / view.crop_height
                assert sample.motion is not None
                # Content enters at the border of the picture, where no vector can be right.
                inner = sample.motion.field_BThw2[sample.motion.valid_BT][:, 1:-1, 1:-1]
                assert torch.allclose(inner, torch.tensor([x, y]), rtol=0, atol=0.1)
                flips.add(view.flip)
                checked += len(inner)
    assert flips == {True, False}
    assert checked > 300


def test_frames_are_the_right_ones_in_the_right_colours(store: Store) -> None:
    sampling = Sampling(stride=5)
    data = Data(store="x", frames=4, size=144, sampling=sampling)
    views = EvalViews(store, store.part(None)[:1], data, sampling=sampling)
    (sample,) = views[0]
    originals = list(pan(STEP))
    for time, index in enumerate([0, 5, 10, 15]):
        original = torch.from_numpy(originals[index].copy()).permute(2, 0, 1)[None].float()
        square = original[..., 32:224]
        expected = torch.nn.functional.interpolate(
            square, (144, 144), mode="bilinear", antialias=True
        )[0]
        error = (sample.video_CTHW[:, time].float() - expected).abs().mean()
        assert error < 6, (time, error)


def test_a_whole_pass_through_workers(store: Store) -> None:
    rows = store.part(None)
    labels = {row: store.rows[row].label for row in rows}
    plan = derive_schedule(
        Optim(total_batch=3, batch_per_device=3, epochs=1, warmup_epochs=0),
        videos=3,
        repeats=2,
        world=1,
    )
    for clips in (
        PretrainClips(store, rows, DATA, patch=16, seed=0),
        FinetuneClips(pickle.loads(pickle.dumps(store)), rows, DATA, Finetune(repeats=2), seed=0),
    ):
        for batch in islice(training_batches(clips, plan, seed=0, workers=2), 2):
            assert batch.video_BCTHW.shape == (6, 3, 4, 64, 64)
            assert sorted(set(batch.row_B.tolist())) == rows
            assert [labels[row] for row in batch.row_B.tolist()] == batch.label_B.tolist()
            assert batch.replaced == 0
    views = EvalViews(store, rows, DATA, sampling=DATA.sampling, segments=2, crops=3)
    found = list(evaluation_batches(views, batch=5, workers=2))
    assert sum(len(batch.row_B) for batch in found) == 18


def test_a_lost_shard_is_an_error_that_names_it(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "store")
    shard = next((copy / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:1000])
    store = Store.open(copy)
    views = EvalViews(store, store.part(None), DATA, sampling=DATA.sampling)
    with pytest.raises(DataError, match=shard.name) as caught:
        list(evaluation_batches(views, batch=2))
    assert caught.value.hint
