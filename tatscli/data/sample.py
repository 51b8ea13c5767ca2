"""`Sample`: one view of one clip, as a dataset hands it to `collate`.

Shapes: T frames, C channels, H and W pixels, t, h and w codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from tatscli.data.files import ClipFiles
from tatscli.data.motion import MotionField
from tatscli.data.view import View


@dataclass(frozen=True, slots=True)
class Sample:
    """One view of one clip.

    Attributes:
        video_CTHW: uint8 RGB; the crop as it was cut where `later` is left to do, empty where the
            `files` are not decoded yet.
        label: Class; -1 where the store has none.
        row: Row of the store's manifest.
        view: Number of the view among those of its video.
        motion: Motion on the token grid of the view, a batch of one; None where nobody reads it.
        codes: By the names of `store/codes.py`, codes of the clip, int64 (t, h, w), and their
            scores, float32.
        later: The view, where the device resizes and mirrors the crop.
        files: The files of the clip, where the device decodes them.
    """

    video_CTHW: Tensor
    label: int
    row: int
    view: int
    motion: MotionField | None = None
    codes: Mapping[str, Tensor] = field(default_factory=dict)
    later: View | None = None
    files: ClipFiles | None = None
