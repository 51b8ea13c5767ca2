"""The motion of clips: from the source that `data.motion` names to a `MotionField`.

Shapes: T frames, C channels, H and W pixels of the view, h and w tokens; F stored frames, J steps
back in time, y and x stored cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tatscli.data.flow import FlowFiles
from tatscli.data.framediff import frame_difference
from tatscli.data.motion import MotionField
from tatscli.data.tracks import Track, pieces, track, unknown_track
from tatscli.data.unreadable import UNREADABLE, unreadable
from tatscli.data.view import View
from tatscli.errors import DataError
from tatscli.recipe.schema import Motion
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tatscli.video.field import grid_size


class MotionSource:
    """The motion of the videos of a store, wherever it comes from.

    Args:
        store: Where the videos are.
        motion: The recipe's `data.motion`.
        needed: Whether mask, selection or targets use the motion; if not, no clip is refused for
            having none.

    Raises:
        DataError: If `motion.path` cannot be read.
    """

    def __init__(self, store: Store, motion: Motion, *, needed: bool = True) -> None:
        if motion.fallback == "error" and not needed:
            motion = motion.model_copy(update={"fallback": "tube"})
        self.store = store
        self.motion = motion
        self._flow = FlowFiles(motion.path) if motion.path is not None else None

    def unknown(self, rows: Sequence[int]) -> list[int]:
        """Return the rows of which the source can know no motion, by manifest and headers alone.

        Raises:
            DataError: If there are some and the recipe allows no fallback, a tensor of the flow has
                another shape or type, or the flow has none of the videos.
        """
        records = self.store.rows
        if self._flow is not None and rows and all(records[r].id not in self._flow for r in rows):
            raise DataError(
                f"`data.motion.path: {self.motion.path}` has none of the {len(rows)} videos:"
                f" it has `{self._flow.example}`, the store `{records[rows[0]].id}`",
                "its tensors are named `<id>/motion`, each id as in the store's `manifest.jsonl`:"
                " the path of the source in the prepared folder, with its suffix",
            )
        unknown = [row for row in rows if not self._may_know(row)]
        if unknown and self.motion.fallback == "error":
            raise DataError(
                f"{len(unknown)} of {len(rows)} videos have no motion, first"
                f" `{records[unknown[0]].id}`, and `data.motion.fallback: error`",
                _hint(self.motion.source),
            )
        return unknown

    def track(self, row: int, frames: Sequence[int]) -> Track | None:
        """Read the motion of a clip; None where the source is the frames themselves.

        Raises:
            DecodeError: If the store cannot be read.
            DataError: If the file of the flow is wrong.
        """
        if self.motion.source == "framediff":
            return None
        if self._flow is None and self.store.rows[row].motion == "none":
            return unknown_track(len(frames), self._shape(row)[1:3])
        wanted = pieces(frames, self.store.rows[row].frames)
        parts = [self._read(row, piece) for piece in wanted]
        fields, valid = zip(*parts, strict=True)
        return track(
            np.concatenate(fields) if len(parts) > 1 else fields[0],
            np.concatenate(valid),
            frames,
            wanted,
            cell=self.store.motion_cell,
            robust=one_scale(self.motion, self.store.settings, self.store.rows[row].motion),
            camera=self.motion.camera,
        )

    def seen(
        self,
        view: View,
        video_TCHW: Tensor,
        track: Track | None,
        frames: Sequence[int],
        patch: int,
        *,
        name: str,
    ) -> MotionField:
        """Return the motion of one view of a clip, as `motion_seen`."""
        return motion_seen(
            view,
            video_TCHW,
            track,
            frames,
            cell=self.store.motion_cell,
            patch=patch,
            fallback=self.motion.fallback,
            name=name,
        )

    def _may_know(self, row: int) -> bool:
        record = self.store.rows[row]
        if self.motion.source == "framediff":
            return record.frames > 1
        if self._flow is not None:
            return self._flow.check(record.id, self._shape(row))
        return record.motion != "none" and record.moving > 0

    def _read(self, row: int, frames: range) -> tuple[np.ndarray, np.ndarray]:
        record = self.store.rows[row]
        if self._flow is None:
            try:
                return self.store.motion(row, frames)
            except UNREADABLE as error:
                raise unreadable(record.id, error) from error
        return self._flow.read(record.id, frames, self._shape(row))

    def _shape(self, row: int) -> tuple[int, int, int, int]:
        """Return the shape of the store's field of a video."""
        record = self.store.rows[row]
        rows, columns = grid_size(record.width, record.height, self.store.motion_cell)
        return record.frames, rows, columns, 2


def one_scale(motion: Motion, prepared: Settings, origin: str = "native") -> bool:
    """Whether the frames of a clip are brought to one scale; `origin` is that of its vectors.

    `--motion auto` takes vectors as they are only where each spans one frame.
    """
    if motion.scaling == "auto":
        return motion.source == "codec" and prepared.motion == origin == "native"
    return motion.scaling == "robust"


def _hint(source: str) -> str:
    """Say what to do without motion."""
    if source == "framediff":
        return "a single frame has no difference; `data.motion.fallback=tube` accepts such videos"
    more = "; `tats prepare --motion auto` makes vectors for files that have none"
    goes_on = "`data.motion.fallback=tube` or `framediff` accepts such videos"
    return goes_on + (more if source == "codec" else "")


def motion_seen(
    view: View,
    video_TCHW: Tensor,
    track: Track | None,
    frames: Sequence[int],
    *,
    cell: int,
    patch: int,
    fallback: str,
    name: str,
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
        name: The video, for the error.

    Returns:
        A batch of one.

    Raises:
        DataError: If nothing is known of the motion and the fallback is `error`.
    """
    grid = (view.size[0] // patch, view.size[1] // patch)
    lost = track is not None and track.missing
    if track is None or (lost and fallback == "framediff"):
        speed_Thw, valid_T = frame_difference(video_TCHW, frames, grid)
        field_Thw2 = speed_Thw.new_zeros(*speed_Thw.shape, 2)
        missing = not valid_T.any()
    elif lost:
        field_Thw2 = torch.zeros(len(frames), *grid, 2)
        speed_Thw = torch.zeros(len(frames), *grid)
        valid_T, missing = track.valid_T, True
    else:
        field_Thw2, speed_Thw = view.motion(track.steps_JT2yx, cell=cell, grid=grid)
        valid_T, missing = track.valid_T, track.missing
    if missing and fallback == "error":
        raise DataError(
            f"`{name}` has no motion in the frames of a clip, and `data.motion.fallback: error`",
            _hint("framediff" if track is None else "codec"),
        )
    return MotionField(
        field_Thw2[None],
        speed_Thw[None],
        valid_T[None],
        torch.tensor([missing]),
        torch.tensor([lost or missing]),
        patch,
    )
