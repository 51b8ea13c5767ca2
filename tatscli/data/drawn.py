"""Views of labelled videos for a probe: one as evaluation sees them, others as fine-tuning does."""

from __future__ import annotations

from collections.abc import Sequence

from tatscli.data.dataset import Sample
from tatscli.data.motion_source import MotionSource
from tatscli.data.sampling import train_indices
from tatscli.data.view import random_resized_crop
from tatscli.data.views import EvalViews
from tatscli.recipe.schema import Augment, Data, Sampling
from tatscli.seeding import random_of
from tatscli.store.reader import Store


class DrawnViews(EvalViews):
    """Views of each video: the first is the middle clip and crop, the others are drawn.

    Drawn are the frames, the crop and whether it is mirrored, by (seed, row, number of the view);
    colours stay as they are.

    Args:
        store: Where the videos are.
        rows: Rows of the store.
        data: The recipe's `data`.
        sampling: How frames are drawn.
        augment: Area, aspect and mirroring of the drawn crops.
        views: Views of each video.
        seed: Seed of every draw.
        motion: Gives views their motion; None where nobody reads it.
        patch: Height and width of a token in pixels, for the motion.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        data: Data,
        *,
        sampling: Sampling,
        augment: Augment,
        views: int,
        seed: int,
        motion: MotionSource | None = None,
        patch: int = 16,
    ) -> None:
        super().__init__(store, rows, data, sampling=sampling, motion=motion, patch=patch)
        self.augment = augment
        self.count = views
        self.seed = seed

    @property
    def views(self) -> int:
        """Views of each video."""
        return self.count

    def alike(self, row: int) -> list[int]:
        """Return each view: no two are drawn alike but by chance."""
        return list(range(self.views))

    def __getitem__(self, item: int) -> list[Sample]:
        position, number = divmod(item, self.views)
        if number == 0:
            return super().__getitem__(item)
        row, augment = self.rows[position], self.augment
        draw = random_of("probe", self.seed, row, number)
        frames = self.indices(
            row,
            self.sampling,
            lambda n: train_indices(n, self.sampling, self.data.frames, draw, labelled=True),
        )
        video_TCHW = self.pictures(row, frames)
        height, width = video_TCHW.shape[-2:]
        view = random_resized_crop(
            height,
            width,
            self.data.view_size,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            flip=augment.flip,
            rng=draw,
            antialias=self.data.antialias_labelled,
        )
        track = self.track(row, frames)
        return [self.sample(view, video_TCHW, track, frames, row, number)]
