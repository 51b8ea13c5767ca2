"""Labelled clips of a store for fine-tuning: random resized crops and augmentation.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from tatscli.data.augment import erase
from tatscli.data.dataset import Clips, Draw, Key
from tatscli.data.motion_source import MotionSource
from tatscli.data.randaugment import rand_augment_pictures
from tatscli.data.sample import Sample
from tatscli.data.sampling import train_indices
from tatscli.data.torchvision_ops import rand_augment
from tatscli.data.view import View, random_resized_crop
from tatscli.errors import DataError
from tatscli.recipe.schema import Data, Finetune
from tatscli.seeding import random_of
from tatscli.store.reader import Store


class FinetuneClips(Clips):
    """Labelled clips: one draw of frames, `finetune.repeats` augmented views of it.

    A view is a random resized crop, perhaps mirrored, and RandAugment, then random erasing; all its
    frames are treated alike. RandAugment follows the crop, or, in VideoMAE's form, comes before it
    on whole pictures (`finetune.augment.rand_augment_form`).

    Args:
        store: Where the videos are.
        rows: Rows of the store to draw from, all labelled.
        data: The recipe's `data`.
        finetune: The recipe's `finetune`.
        seed: Seed of every draw.
        motion: Gives the clips their motion, where a mask follows it: that of the crop, which
            RandAugment's turns and shifts do not change.
        patch: Height and width of a token in pixels, for the motion.

    Raises:
        DataError: If a row has no label.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        data: Data,
        finetune: Finetune,
        *,
        seed: int,
        motion: MotionSource | None = None,
        patch: int = 16,
    ) -> None:
        super().__init__(store, rows, data, motion=motion, patch=patch)
        self.finetune = finetune
        self.sampling = finetune.sampling or data.sampling
        self.seed = seed
        unlabelled = [row for row in self.rows if self.label(row) < 0]
        if unlabelled:
            raise DataError(
                f"{len(unlabelled)} of {len(self.rows)} videos to fine-tune on have no label,"
                f" first `{self.name(unlabelled[0])}`",
                hint="`tats prepare` takes labels from class folders or from --annotations",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, epoch: int, row: int) -> Draw:
        """Draw the frames of a clip."""
        sampling, frames = self.sampling, self.data.frames
        rng = random_of("frames", self.seed, epoch, row)
        return Draw(
            self.indices(
                row, sampling, lambda n: train_indices(n, sampling, frames, rng, labelled=True)
            )
        )

    def look(
        self, epoch: int, row: int, repeat: int, size: tuple[int, int]
    ) -> tuple[View, random.Random]:
        """Draw a random resized crop, perhaps mirrored."""
        rng, augment = random_of("view", self.seed, epoch, row, repeat), self.finetune.augment
        view = random_resized_crop(
            *size,
            self.data.view_size,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            flip=augment.flip,
            rng=rng,
            antialias=self.data.antialias_labelled,
        )
        return view, rng

    def __getitem__(self, key: Key) -> list[Sample]:
        epoch, position = key
        row, data, augment = self.rows[position], self.data, self.finetune.augment
        frames = self.draw(epoch, row).frames
        video_TCHW = self.pictures(row, frames)
        track = self.track(row, frames)
        height, width = video_TCHW.shape[-2:]
        samples = []
        for repeat in range(self.finetune.repeats):
            view, rng = self.look(epoch, row, repeat, (height, width))
            clip_TCHW, later = self._augmented(view, video_TCHW, rng)
            clip_TCHW = erase(
                clip_TCHW, probability=augment.erasing, mean=data.mean, std=data.std, rng=rng
            )
            motion = self.seen(view, clip_TCHW, track, frames, row)
            label = self.label(row)
            clip_CTHW = clip_TCHW.transpose(0, 1)
            samples.append(Sample(clip_CTHW, label, row, repeat, motion, later=later))
        return samples

    @property
    def after_crop(self) -> str | None:
        """What is done with views that are resized already, where anything is."""
        augment = self.finetune.augment
        if augment.rand_augment and augment.rand_augment_form != "videomae":
            return "RandAugment follows the crop (`finetune.augment.rand_augment`)"
        if augment.erasing:
            return "random erasing follows the crop (`finetune.augment.erasing`)"
        return super().after_crop

    @property
    def after_decode(self) -> str | None:
        """What is done with pictures before they are cut, where anything is."""
        return "only pretraining decodes on the GPU"

    def _augmented(
        self, view: View, video_TCHW: Tensor, rng: random.Random
    ) -> tuple[Tensor, View | None]:
        """Look at a clip through a view as `Finishing.look`, with RandAugment before or after."""
        augment = self.finetune.augment
        draws = {"magnitude": augment.rand_augment, "operations": augment.rand_augment_ops}
        if not augment.rand_augment:
            return self.finishing.look(view, video_TCHW)
        if augment.rand_augment_form == "videomae":
            return self.finishing.look(view, rand_augment_pictures(video_TCHW, **draws, rng=rng))
        return rand_augment(view.frames(video_TCHW), **draws, rng=rng), None
