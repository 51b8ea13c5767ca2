"""Clips of a store as torch datasets; an item is every view of one video, which is decoded once.

All that a training item holds follows from (seed, epoch, row, repeat): not from the process, the
worker or what was read before. Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tatscli.data.cache import frames_in_memory
from tatscli.data.files import ClipFiles
from tatscli.data.finishing import Finishing, plan_finishing
from tatscli.data.motion import MotionField
from tatscli.data.motion_source import MotionSource
from tatscli.data.sample import Sample
from tatscli.data.sampling import chosen_frames, drawn_clip, train_indices
from tatscli.data.torchvision_ops import decode_jpegs, import_torchvision
from tatscli.data.tracks import Track
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import View, pretraining_view
from tatscli.errors import DataError
from tatscli.recipe.schema import Data, Sampling
from tatscli.seeding import random_of
from tatscli.store.codes import Codes
from tatscli.store.reader import Store

_NOTHING = torch.empty(0, 0, dtype=torch.uint8)  # no frames
Key = tuple[int, int]  # a training item: epoch, and position among the dataset's rows


class Draw(NamedTuple):
    """The frames of a training clip, and the number of the fixed clip where there are such."""

    frames: list[int]
    clip: int | None = None


class Clips(Dataset[list[Sample]]):
    """Rows of a store, read with errors that name the video: the base of the datasets below.

    Args:
        store: Where the videos are.
        rows: Rows of the store to read.
        data: The recipe's `data`.
        motion: Gives clips their motion; None where nobody reads it.
        patch: Height and width of a token in pixels, for the motion.

    Attributes:
        cache: Decoded frames in memory, or None.
        cache_plan: How much that is, or why it is not.
        finishing: What is left to the device.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        data: Data,
        *,
        motion: MotionSource | None = None,
        patch: int = 16,
    ) -> None:
        import_torchvision()  # fail now and not in a worker; forked workers find it loaded
        if store.settings.frames == "none":
            raise DataError(
                f"the store `{store.path}` contains only motion, no frames",
                "prepare it without `--frames none`",
            )
        self.store = store
        self.rows = list(rows)
        self.data = data
        self.cache, self.cache_plan = frames_in_memory(store, self.rows, data)
        self.motion_source = motion
        self.patch = patch
        self.finishing = Finishing()

    @property
    def after_crop(self) -> str | None:
        """What is done with views that are resized already, where anything is."""
        motion = self.motion_source.motion if self.motion_source else None
        if motion is not None and "framediff" in (motion.source, motion.fallback):
            return "frame differences are those of the resized view (`data.motion`)"
        return None

    @property
    def after_decode(self) -> str | None:
        """What is done with pictures before they are cut, where anything is."""
        unsized = [row for row in self.rows if not self.store.rows[row].width]
        if unsized:
            return f"the manifest does not say how large `{self.name(unsized[0])}` is"
        return None

    def finish_on(self, device: torch.device) -> Finishing:
        """Leave to a device what it does better, as `data.resize_on` and `data.decode` say.

        Raises:
            RecipeError: If the recipe wants a GPU to decode, and there is none.
            TatsError: If the decoder's package is missing.
        """
        self.finishing = plan_finishing(
            self.data, device, after_crop=self.after_crop, after_decode=self.after_decode
        )
        return self.finishing

    def name(self, row: int) -> str:
        """Return the manifest id of a row."""
        return self.store.rows[row].id

    @property
    def view_bytes(self) -> int:
        """Bytes of one view."""
        return 3 * self.data.frames * math.prod(self.data.view_size)

    def label(self, row: int) -> int:
        """Return the class of a row, or -1."""
        label = self.store.rows[row].label
        return -1 if label is None else label

    def draw(self, epoch: int, row: int) -> Draw:
        """Draw the frames of a training clip.

        Raises:
            DataError: If the video is too short.
        """
        raise NotImplementedError

    def look(
        self, epoch: int, row: int, repeat: int, size: tuple[int, int]
    ) -> tuple[View, random.Random]:
        """Draw a view of a training clip, of pictures of some height and width; what else is drawn
        for the view comes from the generator."""
        raise NotImplementedError

    def indices(
        self, row: int, sampling: Sampling, choose: Callable[[int], list[int]]
    ) -> list[int]:
        """Choose frames given the length of a row's video."""
        return chosen_frames(self.store, row, sampling, choose)

    def pictures(self, row: int, frames: list[int]) -> Tensor:
        """Return frames of a row, uint8 (T, C, H, W), from the cache or decoded.

        None is decoded twice, however often it is asked for.

        Raises:
            DecodeError: If they cannot be read.
        """
        wanted, decode = sorted(set(frames)), partial(self._decode, row)
        try:
            video_TCHW = self.cache.read(row, wanted, decode) if self.cache else decode(wanted)
        except UNREADABLE as error:
            raise unreadable(self.name(row), error) from error
        place = {frame: i for i, frame in enumerate(wanted)}
        return video_TCHW if wanted == frames else video_TCHW[[place[i] for i in frames]]

    def track(self, row: int, frames: list[int]) -> Track | None:
        """Read the motion of a clip, where it is read at all."""
        return self.motion_source.track(row, frames) if self.motion_source else None

    def seen(
        self, view: View, clip_TCHW: Tensor, track: Track | None, frames: list[int], row: int
    ) -> MotionField | None:
        """Return the motion of a view of a clip, where it is read at all."""
        source, name = self.motion_source, self.name(row)
        if source is None:
            return None
        return source.seen(view, clip_TCHW, track, frames, self.patch, name=name)

    def _decode(self, row: int, frames: list[int]) -> Tensor:
        return decode_jpegs(self.store.jpegs(row, frames))


class PretrainClips(Clips):
    """Clips and their motion: one draw of frames, `data.repeats` multi-scale corner crops of it.

    Args:
        store: Where the videos are.
        rows: Rows of the store to draw from.
        data: The recipe's `data`.
        patch: Height and width of a token in pixels.
        seed: Seed of every draw.
        follows_motion: Whether mask, predict rule or targets need motion; else no clip is refused
            for having none.
        codes: Names of codes that the store holds, which clips bring along.

    Raises:
        DataError: If the motion's files cannot be read, or there are no such codes.
    """

    motion_source: MotionSource

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        data: Data,
        *,
        patch: int,
        seed: int,
        follows_motion: bool = True,
        codes: Sequence[str] = (),
    ) -> None:
        source = MotionSource(store, data.motion, needed=follows_motion)
        super().__init__(store, rows, data, motion=source, patch=patch)
        self.codes = [Codes(store, name) for name in codes]
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, epoch: int, row: int) -> Draw:
        """Draw the frames of a clip."""
        sampling, frames = self.data.sampling, self.data.frames
        rng = random_of("frames", self.seed, epoch, row)
        clip = drawn_clip(sampling, rng)
        chosen = self.indices(
            row, sampling, lambda n: train_indices(n, sampling, frames, rng, clip)
        )
        return Draw(chosen, clip)

    def look(
        self, epoch: int, row: int, repeat: int, size: tuple[int, int]
    ) -> tuple[View, random.Random]:
        """Draw a multi-scale corner crop, perhaps mirrored."""
        rng = random_of("view", self.seed, epoch, row, repeat)
        return pretraining_view(*size, self.data, rng), rng

    def __getitem__(self, key: Key) -> list[Sample]:
        epoch, position = key
        row, data = self.rows[position], self.data
        frames, clip = self.draw(epoch, row)
        files, clip_TCHW, later = None, _NOTHING, None
        if self.finishing.decode:
            files, record = ClipFiles.read(self.store, row, frames), self.store.rows[row]
            height, width = record.height, record.width
        else:
            video_TCHW = self.pictures(row, frames)
            height, width = video_TCHW.shape[-2:]
        track = self.track(row, frames)
        known = [one.read(row, frames, clip) for one in self.codes]
        codes = {name: torch.from_numpy(value) for one in known for name, value in one.items()}
        samples = []
        for repeat in range(data.repeats):
            view, _ = self.look(epoch, row, repeat, (height, width))
            later = view
            if files is None:
                clip_TCHW, later = self.finishing.look(view, video_TCHW)
            motion = self.seen(view, clip_TCHW, track, frames, row)
            clip_CTHW, label = clip_TCHW.transpose(0, 1), self.label(row)
            samples.append(Sample(clip_CTHW, label, row, repeat, motion, codes, later, files))
        return samples
