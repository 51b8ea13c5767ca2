"""Clips that are decoded on the GPU: their JPEG files travel, and one call decodes a whole batch.

Shapes: B views, C channels, T frames, H and W pixels of the view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.data.crops import finished
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import View
from tatscli.errors import DataError, TatsError
from tatscli.store.reader import Store

Decode = Callable[[list[Tensor], torch.device], list[Tensor]]
"""Decodes files, each uint8 (n,) on the host, on a device: uint8 RGB (C, H, W) each."""


@dataclass(frozen=True, slots=True)
class ClipFiles:
    """The files of a clip, which its views share.

    Attributes:
        name: Of the video, for errors.
        files: Different ones.
        order: Which of them each frame shows.
    """

    name: str
    files: tuple[np.ndarray, ...]
    order: tuple[int, ...]

    @classmethod
    def read(cls, store: Store, row: int, frames: Sequence[int]) -> ClipFiles:
        """Read the files of frames of a row, none of them twice.

        Raises:
            DecodeError: If they cannot be read.
        """
        wanted, name = sorted(set(frames)), store.rows[row].id
        try:
            files = store.jpegs(row, wanted)
        except UNREADABLE as error:
            raise unreadable(name, error) from error
        place = {frame: i for i, frame in enumerate(wanted)}
        return cls(name, tuple(files), tuple(place[frame] for frame in frames))


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a batch in one buffer, and the views of its clips.

    Attributes:
        content: uint8, one file after the other.
        lengths: Bytes of each file.
        clips: Of each clip its name, its first file, and which each frame shows from there on.
        views: Clip and view of each sample.
    """

    content: Tensor
    lengths: tuple[int, ...]
    clips: tuple[tuple[str, int, tuple[int, ...]], ...]
    views: tuple[tuple[int, View], ...]

    @classmethod
    def pack(cls, samples: Sequence[tuple[ClipFiles, View]]) -> Files:
        """Lay the files of some views into one buffer, those of a clip once."""
        numbers: dict[int, int] = {}
        clips: list[tuple[str, int, tuple[int, ...]]] = []
        files: list[np.ndarray] = []
        views = []
        for clip, view in samples:
            if id(clip) not in numbers:
                numbers[id(clip)] = len(clips)
                clips.append((clip.name, len(files), clip.order))
                files += clip.files
            views.append((numbers[id(clip)], view))
        content = torch.from_numpy(np.concatenate(files))
        return cls(content, tuple(map(len, files)), tuple(clips), tuple(views))

    def each(self, change: Callable[[Tensor], Any]) -> Files:
        """Return the same files with their buffer changed."""
        return replace(self, content=change(self.content))

    def video(self, device: torch.device) -> Tensor:
        """Decode and return the views, on a device: uint8 (B, C, T, H, W).

        Raises:
            DataError: If a file cannot be decoded; the message names the video.
        """
        decode = gpu_decoder()
        files = list(self.content.split(list(self.lengths)))
        try:
            pictures = decode(files, device)
        except RuntimeError as error:
            raise self._culprit(files, decode, device, error) from error
        clips = [
            torch.stack([pictures[first + number] for number in order])
            for _, first, order in self.clips
        ]
        try:
            cut = [view.cut(clips[clip]) for clip, view in self.views]
        except ValueError as error:  # not of the size that the manifest says
            raise DataError(str(error), "`tats store verify` checks the store") from error
        views = [view for _, view in self.views]
        return finished(cut, views, views[0].size)

    def _culprit(
        self, files: list[Tensor], decode: Decode, device: torch.device, error: RuntimeError
    ) -> DataError:
        """Return the error that names the clip which cannot be decoded."""
        named = "a clip"
        for name, first, order in self.clips:
            try:
                decode(files[first : first + max(order) + 1], device)
            except RuntimeError as own:
                named, error = f"`{name}`", own
                break
        return DataError(
            f"{named} cannot be decoded on the GPU: {error}",
            "`data.decode=cpu` replaces videos that cannot be read, within `data.max_bad_share`",
        )


def gpu_decoder() -> Decode:
    """Return TorchCodec's decoder, which works on the current stream and is waited for.

    Raises:
        TatsError: If the package is missing or does not fit torch.
    """
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, OSError, RuntimeError) as error:
        raise TatsError(
            f"`data.decode: gpu` cannot use the package `torchcodec`: {error}",
            "`pip install 'tats[gpu-decode]'` installs it; `data.decode=cpu` does without",
        ) from error
    return lambda files, device: decode_jpeg(files, mode="RGB", device=device)
