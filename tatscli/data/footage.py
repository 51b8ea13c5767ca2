"""Videos as frames in the order they are shown: files, rows of a store, or frames in memory.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tatscli.data.torchvision_ops import decode_jpegs
from tatscli.data.unreadable import UNREADABLE
from tatscli.errors import DataError, DecodeError, UsageError
from tatscli.store.annotations.videos import Videos, readable
from tatscli.store.reader import Store
from tatscli.video.frames import shown_frames
from tatscli.video.reader import VideoReader


class Frame(NamedTuple):
    """A frame that has not been looked at yet.

    Attributes:
        time: Presentation time in seconds.
        picture: Makes its picture, uint8 RGB (1, C, H, W).
    """

    time: float
    picture: Callable[[], Tensor]


class Footage(ABC):
    """A video that can be read from its beginning, as often as one likes.

    Attributes:
        name: What messages and results call it.
        seconds: How long it is, as far as that is known; of a file when it has begun to be read.
        problem: What went wrong in the last pass, though there were frames; None if nothing did.
    """

    name: str
    seconds: float | None = None
    problem: str | None = None

    @abstractmethod
    def frames(self, short_side: int | None) -> Iterator[Frame]:
        """Yield every frame; pictures that nobody asks for are not converted.

        Args:
            short_side: Pictures of a file are scaled down to it, as `tats prepare --short-side`
                does; None keeps their size. Others stay as they are.

        Raises:
            DataError: The video cannot be read; its subclass says why and does not name it.
        """

    def times(self) -> list[float]:
        """Return the presentation time of every frame in seconds; of a file, by decoding it."""
        return [frame.time for frame in self.frames(None)]


class FileFootage(Footage):
    """A file that FFmpeg can read; never more of it than a frame is in memory.

    Args:
        path: The file.
        name: What to call it; by default its path.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = readable(str(path)) if name is None else name

    def frames(self, short_side: int | None) -> Iterator[Frame]:
        """Decode the file; a damaged packet is skipped, and remembered in `problem`."""
        reader = VideoReader(self.path)
        for time, picture in shown_frames(reader, short_side=short_side):
            self.seconds = reader.seconds
            yield Frame(time, partial(_as_tensor, picture))
        self.problem = reader.problem


class StoreFootage(Footage):
    """A video of a store.

    Args:
        store: The store; threads read through copies of their own.
        row: Of its manifest.
    """

    def __init__(self, store: Store, row: int, copies: _Copies | None = None) -> None:
        self.row = row
        self.name = store.rows[row].id
        self.seconds = store.rows[row].duration
        self._copies = copies or _Copies(store)

    @classmethod
    def all(cls, store: Store, split: str | None) -> list[StoreFootage]:
        """Return the readable videos of a split, in the order of their ids; None takes all.

        Raises:
            DataError: There are none, or the store holds no pictures.
        """
        rows, copies = store.part(split), _Copies(store)
        if store.settings.frames == "none":
            raise DataError(
                f"the store `{store.path}` contains only motion, no frames",
                "prepare it without `--frames none`",
            )
        return [cls(store, row, copies) for row in rows]

    def frames(self, short_side: int | None) -> Iterator[Frame]:
        """Yield the stored frames, decoding those that are looked at."""
        for index, time in enumerate(self.times()):
            yield Frame(time, partial(self._decoded, index))

    def times(self) -> list[float]:
        """Return the presentation times, which the store keeps."""
        try:
            return self._copies.store.times(self.row).tolist()
        except UNREADABLE as error:
            raise _unreadable(error) from error

    def _decoded(self, index: int) -> Tensor:
        try:
            return decode_jpegs(self._copies.store.jpegs(self.row, [index]))
        except UNREADABLE as error:
            raise _unreadable(error) from error


def _unreadable(error: Exception) -> DecodeError:
    return DecodeError(str(error), error.hint if isinstance(error, DataError) else None)


class _Copies(threading.local):
    """A store for every thread that reads: the shards it keeps open are in no one else's way."""

    def __init__(self, store: Store) -> None:
        self.store = Store(store.path, store.dataset, store.rows)


class ArrayFootage(Footage):
    """Frames in memory.

    Args:
        frames: uint8 RGB (T, H, W, C), as an array or tensor, or a list of pictures (H, W, C).
        fps: Frames a second.

    Raises:
        UsageError: They are nothing of the kind.
    """

    name = "frames"

    def __init__(self, frames: np.ndarray | Tensor | Sequence[object], fps: float) -> None:
        if isinstance(frames, Sequence):
            frames = np.stack([np.asarray(one) for one in frames]) if frames else np.empty(0)
        video_THWC = torch.as_tensor(frames)
        form = tuple(video_THWC.shape)
        if video_THWC.dtype != torch.uint8 or len(form) != 4 or form[3] != 3 or 0 in form:
            raise UsageError(
                f"frames of shape {form} and type {str(video_THWC.dtype).removeprefix('torch.')} "
                "are not a video",
                hint="give RGB frames of one size in uint8, 0 to 255: (frames, height, width, 3)",
            )
        self.video_TCHW = video_THWC.cpu().permute(0, 3, 1, 2)
        self.fps = fps
        self.seconds = len(video_THWC) / fps

    def frames(self, short_side: int | None) -> Iterator[Frame]:
        """Yield the frames."""
        for index, picture_CHW in enumerate(self.video_TCHW):
            yield Frame(index / self.fps, partial(picture_CHW.unsqueeze, 0))


def find_videos(places: Sequence[Path]) -> tuple[list[FileFootage], list[str]]:
    """Find the videos that paths mean: files as they are, and all videos below folders, by name.

    Videos of a single folder are called by their path inside of it, as a store's are; others by
    their whole path. A file that is named twice is taken once.

    Args:
        places: Files and folders.

    Returns:
        The videos, in the order of the places and sorted within a folder; and the folders that
            could not be looked into.

    Raises:
        UsageError: A place does not exist, or a folder holds no video.
    """
    found: dict[Path, FileFootage] = {}
    closed: list[str] = []
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise UsageError(f"`{place}` does not exist", hint="name video files and folders")
            found.setdefault(place, FileFootage(place))
            continue
        videos = Videos(place)
        if not videos.paths:
            others = ", ".join(f"{n} {suffix}" for suffix, n in sorted(videos.others.items()))
            raise UsageError(
                f"`{place}` holds no video" + (f"; it holds {others}" if others else ""),
                hint="videos are found by their suffix, in all sub-folders; a file that has "
                "another one can be named itself",
            )
        closed += videos.closed
        for path in sorted(videos.paths, key=str):
            name = readable(str(path)) if len(places) == 1 else None
            found.setdefault(place / path, FileFootage(place / path, name))
    return list(found.values()), closed


def _as_tensor(picture: Callable[[], np.ndarray]) -> Tensor:
    return torch.from_numpy(picture())[None].permute(0, 3, 1, 2)
