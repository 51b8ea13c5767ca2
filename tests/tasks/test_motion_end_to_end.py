"""A pan of known velocity, from the encoded file to the motion that a masker is given."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tatscli.data.batch import collate
from tatscli.data.dataset import PretrainClips
from tatscli.data.sampling import train_indices
from tatscli.recipe.schema import Data, Sampling
from tatscli.seeding import random_of
from tatscli.store.reader import Store
from tests.clips import CLEAN_VECTORS, pan, render

STEP = (3, -2)


@pytest.fixture(scope="module", params=[192, 128])
def store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Store:
    """A film of 36 frames with a key frame every ten, stored at its size or at two thirds."""
    from tatscli.cli import main

    folder = tmp_path_factory.mktemp("pan")
    render(
        folder / "videos" / "pan.mp4",
        pan(STEP, frames=36, height=192, width=256),
        options={**CLEAN_VECTORS, "g": "10", "sc_threshold": "0"},
    )
    words = [folder / "videos", "--out", folder / "store", "--short-side", request.param]
    assert main(["prepare", *map(str, words)]) == 0
    return Store.open(folder / "store")


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(stride=1),
        Sampling(stride=2),
        Sampling(stride=4),
        Sampling(fps=10),
        Sampling(mode="uniform"),
    ],
    ids=lambda sampling: sampling.mode if sampling.mode == "uniform" else repr(sampling),
)
def test_a_pan_arrives_at_the_masker_as_far_as_it_went(
    store: Store, sampling: Sampling, flip: float
) -> None:
    """Within a twentieth of a pixel a stored frame, whichever frames are skipped between two."""
    data = Data(store="", frames=8, size=112, sampling=sampling, flip=flip, crop_scales=[0.66])
    clips = PretrainClips(store, [0], data, patch=16, seed=1)
    height = store.rows[0].height
    zoom = 112 / int(height * 0.66) * height / 192  # pixels of the view per source pixel
    for epoch in range(4):
        rng = random_of("frames", 1, epoch, 0)
        frames = clips.indices(
            0, sampling, lambda length, rng=rng: train_indices(length, sampling, 8, rng)
        )
        gaps = [after - before for before, after in pairwise(frames)]
        motion = collate(clips[epoch, 0]).motion
        assert motion is not None
        assert motion.valid_BT[0].tolist() == [frame % 10 != 0 for frame in frames]
        assert not motion.missing_B.any()
        assert not motion.fallback_B.any()
        for time, gap in enumerate([gaps[0], *gaps]):
            wanted = torch.tensor([-STEP[0] if flip else STEP[0], STEP[1]]) * zoom * gap
            # Near the border of the picture comes in what no vector can describe.
            field, speed = motion.field_BThw2[0, time], motion.speed_BThw[0, time]
            inner = field[2:-2, 2:-2]
            assert (inner.mean(dim=(0, 1)) - wanted).abs().max() < 0.05 * gap * zoom
            assert (inner - wanted).abs().max() < 0.25 * gap * zoom
            length = wanted.norm()
            assert (speed[2:-2, 2:-2] - length).abs().max() < 0.25 * gap * zoom
