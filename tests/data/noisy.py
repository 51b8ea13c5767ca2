"""Datasets over a store whose every pixel differs, and what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from tatscli.data.dataset import Clips
from tatscli.data.loader import evaluation_batches, training_batches
from tatscli.data.views import EvalViews
from tatscli.recipe.derive import derive_schedule
from tatscli.recipe.schema import Data, Optim, Sampling
from tests.data.fake_store import FakeStore, jpeg

FRAME = 48 * 64 * 3
"""Bytes of a decoded frame, where the store is not told another size."""


class Noisy(FakeStore):
    """Frames whose every pixel differs: a wrong or half-written one cannot go unseen."""

    def _picture(self, row: int, frame: int) -> np.ndarray:
        rng = np.random.default_rng((row, frame))
        return jpeg(rng.integers(0, 256, (*self.size, 3), dtype=np.uint8))

    def lose(self) -> None:
        """From now on nothing can be decoded."""
        self.broken = set(range(len(self.rows)))


def data(**change: Any) -> Data:
    sampling = Sampling(stride=2, short="loop")
    values = {"store": "x", "frames": 4, "size": 32, "sampling": sampling, "flip": 0.5, **change}
    return Data(**values)


def plain(store: FakeStore, **change: Any) -> Clips:
    return Clips(store, range(len(store.rows)), data(**change))


def views(store: FakeStore, **change: Any) -> EvalViews:
    rows = range(len(store.rows))
    return EvalViews(store, rows, data(**change), sampling=Sampling(stride=2), segments=2, crops=3)


def training(clips: Clips, *, repeats: int, workers: int, batches: int = 6) -> list[Any]:
    optim = Optim(total_batch=2, batch_per_device=2, epochs=9, warmup_epochs=0)
    schedule = derive_schedule(optim, videos=len(clips.rows), repeats=repeats, world=1)
    stream = training_batches(clips, schedule, seed=0, workers=workers)
    return list(islice(stream, batches))


def evaluated(dataset: EvalViews, *, workers: int = 0) -> list[Any]:
    return list(evaluation_batches(dataset, batch=4, workers=workers))


def equal(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.video_BCTHW, b.video_BCTHW) for a, b in pairs)
