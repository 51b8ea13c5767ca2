"""A pan of known velocity, from the encoded file to the motion that a masker is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tatscli.data.batch import collate
from tatscli.data.dataset import PretrainClips
from tatscli.recipe.schema import Data, Sampling
from tatscli.store.reader import Store
from tests.clips import CLEAN_VECTORS, pan, render


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("short_side", [192, 128])
def test_a_pan_arrives_at_the_masker_within_a_tenth_of_a_pixel(
    tmp_path: Path, cli: Callable[..., Any], flip: float, short_side: int
) -> None:
    render(
        tmp_path / "videos" / "pan.mp4",
        pan((3, -2), frames=20, height=192, width=256),
        options=CLEAN_VECTORS,
    )
    outcome = cli(
        "prepare", tmp_path / "videos", "--out", tmp_path / "store", "--short-side", short_side
    )
    assert outcome.code == 0, outcome.stderr
    store = Store.open(tmp_path / "store")
    data = Data(
        store="", frames=8, size=112, sampling=Sampling(stride=2), flip=flip, crop_scales=[0.66]
    )
    clips = PretrainClips(store, [0], data, patch=16, seed=1)
    for epoch in range(4):
        batch = collate(clips[epoch, 0])
        assert batch.motion is not None
        field, valid = batch.motion.field_BThw2[0], batch.motion.valid_BT[0]
        assert valid.sum() >= 7  # all but the key frame
        zoom = 112 / (short_side * 0.66) * short_side / 192  # pixels of the view per source pixel
        wanted = torch.tensor([-3.0 if flip else 3.0, -2.0]) * zoom
        # The border of the picture shows what comes in, which no vector can describe.
        inner = field[valid][:, 2:-2, 2:-2]
        assert (inner - wanted).abs().mean() < 0.05 * zoom
        assert (inner.mean(dim=(0, 1, 2)) - wanted).abs().max() < 0.1 * zoom
        assert ((inner - wanted).abs().amax(dim=-1) < 0.1 * zoom).float().mean() > 0.95
