"""Whose motion a clip gets: the recipe's `data.motion`, from its sources to `MotionField`.

Shapes: T frames, C channels, H and W pixels, F stored frames, y and x stored cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tatscli.data.flow import FlowFiles
from tatscli.data.framediff import frame_difference
from tatscli.data.motion import MotionField
from tatscli.data.tracks import Track, reach, track
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import View
from tatscli.errors import DataError
from tatscli.recipe.schema import Motion
from tatscli.store.reader import Store
from tatscli.video.field import grid_size


class MotionSource:
    """The motion of the videos of a store, wherever it comes from.

    Args:
        store: Where the videos are.
        motion: The recipe's `data.motion`.

    Raises:
        DataError: If `motion.path` cannot be read.
    """

    def __init__(self, store: Store, motion: Motion) -> None:
        self.store = store
        self.motion = motion
        self._flow = FlowFiles(motion.path) if motion.path is not None else None

    def track(self, row: int, frames: Sequence[int]) -> Track | None:
        """Read the motion of a clip; None where the source is the frames themselves.

        Raises:
            DecodeError: If the store cannot be read.
            DataError: If there is none and the recipe allows no fallback, or the file of the flow
                is wrong.
        """
        if self.motion.source == "framediff":
            return None
        wanted = reach(frames, self.store.rows[row].frames)
        field_Fyx2, valid_F = self._read(row, wanted)
        found = track(
            field_Fyx2,
            valid_F,
            frames,
            wanted.start,
            cell=self.store.motion_cell,
            robust=self._robust(row),
            camera=self.motion.camera,
        )
        refuse_missing(found, self.motion, self.store.rows[row].id)
        return found

    def seen(
        self, view: View, video_TCHW: Tensor, track: Track | None, frames: Sequence[int], patch: int
    ) -> MotionField:
        """Return the motion of one view of a clip."""
        return motion_seen(
            view,
            video_TCHW,
            track,
            frames,
            cell=self.store.motion_cell,
            patch=patch,
            fallback=self.motion.fallback,
        )

    def _read(self, row: int, frames: range) -> tuple[np.ndarray, np.ndarray]:
        record = self.store.rows[row]
        if self._flow is None:
            try:
                return self.store.motion(row, frames)
            except UNREADABLE as error:
                raise unreadable(record.id, error) from error
        rows, columns = grid_size(record.width, record.height, self.store.motion_cell)
        return self._flow.read(record.id, frames, (record.frames, rows, columns, 2))

    def _robust(self, row: int) -> bool:
        """Whether the frames of a clip are brought to one scale."""
        if self.motion.scaling != "auto":
            return self.motion.scaling == "robust"
        # `--motion auto` takes vectors as they are only where each spans one frame.
        as_they_are = self.store.settings.motion == "native"
        return as_they_are and self._flow is None and self.store.rows[row].motion == "native"


def refuse_missing(track: Track, motion: Motion, name: str) -> None:
    """Stop where a clip has no motion and the recipe wants no fallback.

    Raises:
        DataError: Which names the video.
    """
    if track.missing and motion.fallback == "error":
        raise DataError(
            f"`{name}` has no motion in the frames of a clip, and `data.motion.fallback: error`",
            "`data.motion.fallback=tube` or `=framediff` goes on without; `tats prepare --motion"
            " auto` makes vectors for files that have none",
        )


def motion_seen(
    view: View,
    video_TCHW: Tensor,
    track: Track | None,
    frames: Sequence[int],
    *,
    cell: int,
    patch: int,
    fallback: str,
) -> MotionField:
    """Bring the motion of a clip onto the tokens of a view.

    Args:
        view: The view.
        video_TCHW: The frames of that view, uint8.
        track: The motion of the clip; None takes the change of the frames.
        frames: Their numbers in the video.
        cell: Side of a cell of the track in stored pixels.
        patch: Height and width of a token.
        fallback: As `data.motion.fallback`, for a track without motion.

    Returns:
        A batch of one.
    """
    grid = (view.size // patch, view.size // patch)
    lost = track is not None and track.missing
    if track is None or (lost and fallback == "framediff"):
        speed_Thw, valid_T = frame_difference(video_TCHW, frames, grid)
        field_Thw2 = speed_Thw.new_zeros(*speed_Thw.shape, 2)
        missing = not valid_T.any()
    else:
        field_Thw2, speed_Thw = view.motion(track.steps_JT2yx, cell=cell, grid=grid)
        valid_T, missing = track.valid_T, track.missing
    return MotionField(
        field_Thw2[None],
        speed_Thw[None],
        valid_T[None],
        torch.tensor([missing]),
        torch.tensor([lost or missing]),
        patch,
    )
