"""From the motion of stored frames to that of a clip: filled, scaled, freed of the camera, chained.

Motion is displacement of content since the stored frame before. The order is: fill, keep what is
used, scale, take the camera out, chain. No paper says how to treat key frames and skipped frames;
these ways are ours (`docs/motion.md`).

Shapes: F stored frames, T frames of the clip, J steps back in time, y and x cells, n cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import sub

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tatscli.video.camera import Camera, remove_camera

_TOP = 0.95  # the percentile that stands for the scale of a frame
# Stored frames that content is followed back: two seconds at 30 a second, after which errors have
# added up and most of it is out of view. Without a limit a clip that spans a long video (`mode:
# uniform`) would take gigabytes.
FURTHEST = 64


@dataclass(frozen=True, slots=True)
class Track:
    """The motion into each frame of a clip, before any view of it.

    Attributes:
        steps_JT2yx: float32, the way that the content of a cell took since the clip frame before,
            or its last `FURTHEST` steps, the last stored frame first, in stored pixels, x first. 0
            beyond the frame before.
        valid_T: bool; whether the motion into this very frame was known.
        missing: Not one of the stored frames that were read had motion.
    """

    steps_JT2yx: Tensor
    valid_T: Tensor
    missing: bool


def gaps(frames: Sequence[int]) -> list[int]:
    """Return how many stored frames each frame of a clip lies after the one before.

    A frame that is shown again has 0. One that starts afresh, the first of the clip or of a loop,
    has the next distance in the clip, as if a frame went before; without one the last, or 1. Of a
    clip that shows one picture again and again every frame has 0.
    """
    steps = [-1, *(after - before for before, after in pairwise(frames))]
    if len(steps) > 1 and not any(steps[1:]):
        return [0] * len(steps)
    ahead = next((step for step in reversed(steps) if step > 0), 1)
    found: list[int] = []
    for step in reversed(steps):
        ahead = step if step > 0 else ahead
        found.append(ahead if step < 0 else step)
    return found[::-1]


def pieces(frames: Sequence[int], length: int) -> list[range]:
    """Return the stored frames whose motion a clip of a video of `length` frames needs.

    For each frame of the clip the way into it; the frame after it may fill a key frame. They are in
    ascending order, and one range where the frames lie close.

    Raises:
        IndexError: If the video has no such frame.
    """
    for frame in (min(frames), max(frames)):
        if not 0 <= frame < length:
            raise IndexError(f"there is no frame {frame} in a video of {length} frames")
    back = gaps(frames)
    if max(back) <= FURTHEST:
        first = min(map(sub, frames, back)) + 1 if any(back) else min(frames)
        return [range(max(0, first), min(length, max(frames) + 2))]
    found: list[range] = []
    ways = sorted((f + 1 - min(gap, FURTHEST), f) for f, gap in zip(frames, back, strict=True))
    for first, frame in ways:
        first, after = max(0, first), min(length, frame + 2)
        if found and first <= found[-1].stop:
            last = found.pop()
            first, after = last.start, max(after, last.stop)
        found.append(range(first, after))
    return found


def unknown_track(frames: int, grid: Sequence[int]) -> Track:
    """Return the track of a clip of which no motion is known, on rows and columns of cells."""
    still_JT2yx = torch.zeros(1, frames, 2, *grid)
    return Track(still_JT2yx, torch.zeros(frames, dtype=torch.bool), missing=True)


def track(
    field_Fyx2: np.ndarray,
    valid_F: np.ndarray,
    frames: Sequence[int],
    stored: int | Sequence[range],
    *,
    cell: int,
    robust: bool = False,
    camera: Camera = "none",
) -> Track:
    """Bring the motion of stored frames to the frames of a clip.

    Args:
        field_Fyx2: float32, displacement since the stored frame before, in stored pixels, x first.
        valid_F: bool; whether it is known.
        frames: Stored frames of the clip.
        stored: Which frames `field_Fyx2` holds: the `pieces`, or the first of successive frames.
        cell: Side of a cell in stored pixels.
        robust: Bring the frames to one scale.
        camera: Model of the camera's motion to take out.
    """
    if isinstance(stored, int):
        stored = [range(stored, stored + len(valid_F))]
    first = stored[0].start
    gap_T = np.minimum(gaps(frames), FURTHEST)
    back_J1 = np.arange(gap_T.max(initial=1))[:, None]
    moving_JT = back_J1 < gap_T
    # What lies before the video moves like its first frame.
    place_JT = np.maximum(np.array(frames) - back_J1, first) - first
    if len(stored) > 1:
        place_JT = np.searchsorted(np.concatenate(stored) - first, place_JT)
    valid_T = torch.from_numpy(valid_F[place_JT[0]] & moving_JT[0])
    if not valid_F.any():
        return unknown_track(len(frames), field_Fyx2.shape[1:3])
    if not moving_JT.any():
        still_JT2yx = torch.zeros(1, len(frames), 2, *field_Fyx2.shape[1:3])
        return Track(still_JT2yx, valid_T, missing=False)
    source_JT = nearest(valid_F)[place_JT]
    if robust or camera != "none":
        used_F = np.zeros(len(valid_F), bool)
        used_F[source_JT[moving_JT]] = True
        source_JT = np.maximum(used_F.cumsum() - 1, 0)[source_JT]  # any, where it is not moving
        field_Fyx2 = field_Fyx2[used_F]
        if robust:
            field_Fyx2 = _one_scale(field_Fyx2)
        field_Fyx2 = remove_camera(field_Fyx2, None, camera)
    steps_JT2yx = chain(
        torch.from_numpy(field_Fyx2).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(source_JT),
        torch.from_numpy(moving_JT),
        cell=cell,
    )
    return Track(steps_JT2yx, valid_T, missing=False)


def nearest(valid_F: np.ndarray) -> np.ndarray:
    """Return for each frame the next valid one, itself included, or else the last before: int64.

    The frame after a key frame tells best how content moved into it (P after I).
    """
    number_F, F = np.arange(len(valid_F)), len(valid_F)
    next_F = np.minimum.accumulate(np.where(valid_F, number_F, F)[::-1])[::-1]
    last_F = np.maximum.accumulate(np.where(valid_F, number_F, 0))
    return np.where(next_F < F, next_F, last_F)


def chain(field_F2yx: Tensor, source_JT: Tensor, moving_JT: Tensor, *, cell: int) -> Tensor:
    """Follow content back in time, frame by frame along its own path.

    v_k(p) + v_k-1(p - v_k(p)) + ..., read between cells bilinearly; what comes from beyond the
    border moves as the border does.

    Args:
        field_F2yx: Displacement since the frame before, in stored pixels, x first.
        source_JT: int64, the frame whose field is step j into clip frame t.
        moving_JT: bool, whether that step belongs to the way; the others are 0.
        cell: Side of a cell in stored pixels.

    Returns:
        The steps, (J, T, 2, y, x).
    """
    J, T = source_JT.shape
    y, x = field_F2yx.shape[2:]
    steps_JT2yx = field_F2yx.new_empty(J, T, 2, y, x)
    torch.index_select(field_F2yx, 0, source_JT[0], out=steps_JT2yx[0])
    if J == 1:
        return steps_JT2yx.mul_(moving_JT[..., None, None, None])
    at_T2yx, per_pixel_211 = _sampling_grid(y, x, cell)
    for j in range(1, J):
        at_T2yx = torch.addcmul(at_T2yx, steps_JT2yx[j - 1], per_pixel_211, value=-1)
        steps_JT2yx[j] = functional.grid_sample(
            field_F2yx[source_JT[j]],
            at_T2yx.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
    return steps_JT2yx if moving_JT.all() else steps_JT2yx.mul_(moving_JT[..., None, None, None])


@lru_cache(maxsize=64)
def _sampling_grid(y: int, x: int, cell: int) -> tuple[Tensor, Tensor]:
    """Return the places of the cells as `grid_sample` counts them, (2, y, x), and its pixel.

    It counts from -1 in the middle of the first cell to 1 in that of the last.
    """
    unit_211 = torch.tensor([2 / max(x - 1, 1), 2 / max(y - 1, 1)])[:, None, None]
    ends = torch.arange(x).float(), torch.arange(y).float()
    return torch.stack(torch.meshgrid(*ends, indexing="xy")) * unit_211 - 1, unit_211 / cell


def _one_scale(field_Fyx2: np.ndarray) -> np.ndarray:
    """Divide each frame by the 95th percentile of its moving cells, multiply by the clip's median.

    Vectors that span unknown distances become comparable (the division is the note's on native
    vectors; that the result is in pixels again is ours). A frame in which nothing moves stays.
    """
    speed_Fyx = np.sqrt(field_Fyx2[..., 0] ** 2 + field_Fyx2[..., 1] ** 2)
    speed_Fn = np.sort(speed_Fyx.reshape(len(speed_Fyx), -1), axis=1)
    moving_F = (speed_Fn > 0).sum(1)
    if not moving_F.any():
        return field_Fyx2
    n = speed_Fn.shape[1]
    # The percentile among the last `moving` of n, between its two neighbours as numpy's.
    place_F = np.clip(n - moving_F + _TOP * (moving_F - 1), 0, n - 1)
    low_F = np.floor(place_F).astype(np.int64)
    share_F = place_F - low_F
    frame_F = np.arange(len(speed_Fn))
    high_F = np.minimum(low_F + 1, n - 1)
    top_F = speed_Fn[frame_F, low_F] * (1 - share_F) + speed_Fn[frame_F, high_F] * share_F
    scale_F = np.where(
        moving_F > 0, np.median(top_F[moving_F > 0]) / np.where(top_F > 0, top_F, 1), 1
    )
    return field_Fyx2 * scale_F[:, None, None, None].astype(np.float32)
