"""Motion vectors to motion field: the displacement of content on a regular grid of cells.

For each block FFmpeg exports the vector from the block to its reference: `source = destination +
motion / motion_scale` (libavutil/motion_vector.h). So content moved by its negative where the
reference is past, and will move by the vector itself where the reference is future. `src_x` and
`src_y` are rounded to whole pixels and not used.
"""

from __future__ import annotations

import numpy as np

from tatscli.video.crop import WHOLE, Crop
from tatscli.video.orientation import UPRIGHT, Orientation

_MACROBLOCK = 16


def grid_size(width: int, height: int, cell: int) -> tuple[int, int]:
    """Return the rows and columns of the motion field of a stored picture."""
    return -(-height // cell), -(-width // cell)


def rasterise(
    vectors: np.ndarray,
    *,
    coded: tuple[int, int],
    stored: tuple[int, int],
    cell: int,
    crop: Crop = WHOLE,
    orientation: Orientation = UPRIGHT,
    past: int = 1,
    future: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Average the vectors of one frame over the cells of the stored picture, weighted by area.

    Where B-frames have blocks of both lists, the past list is used, and the future one only in
    macroblocks without a past vector. Areas without a block have no weight; a cell without any
    block is 0.

    Args:
        vectors: FFmpeg's rows as a structured array: source, w, h, dst_x, dst_y, motion_x,
            motion_y, motion_scale.
        coded: Width and height of the decoded picture, in which the vectors are given.
        crop: The part of it that is not stored.
        stored: Width and height of the stored picture, upright.
        cell: Side of a cell in stored pixels; the last row and column may be narrower.
        orientation: Rotation and mirroring that make the coded picture upright.
        past: Frames from the past reference to this one.
        future: Frames from this one to the future reference.

    Returns:
        The field (ceil(height / cell), ceil(width / cell), 2) float32, in stored pixels per frame,
        x first; and a bool mask of the cells that hold any block.
    """
    ahead = vectors["source"] > 0
    if ahead.any():
        vectors = vectors[_counting(vectors, ahead, coded)]
        ahead = vectors["source"] > 0
    # Motion of content in coded pixels per frame. Snow's source is -n for the n-th reference back.
    factor = np.where(ahead, 1 / future, 1 / past) / vectors["source"]
    factor /= np.maximum(vectors["motion_scale"], 1)
    steps = [vectors["motion_x"] * factor, vectors["motion_y"] * factor]
    # First and last edge of each block along each axis, inside what is stored of the picture.
    ends = []
    lengths = crop.size(*coded)
    for name, length, begin in zip("xy", lengths, (crop.left, crop.top), strict=True):
        size = vectors["w" if name == "x" else "h"].astype(np.float64)
        first = vectors[f"dst_{name}"] - size // 2 - begin
        ends.append((first.clip(0, length), (first + size).clip(0, length)))

    if orientation.transpose:
        ends, steps, lengths = ends[::-1], steps[::-1], lengths[::-1]
    overlaps = []
    grid = grid_size(*stored, cell)
    for axis, flip in enumerate((orientation.flip_x, orientation.flip_y)):
        (first, last), length = ends[axis], lengths[axis]
        scale = stored[axis] / length
        if flip:
            first, last = length - last, length - first
            steps[axis] = -steps[axis]
        steps[axis] = steps[axis] * scale
        overlaps.append(_overlaps(first * scale, last * scale, cell, grid[1 - axis]))

    total = np.zeros((3, grid[0] * grid[1]))
    for row, tall in overlaps[1]:
        for column, wide in overlaps[0]:
            area, index = tall * wide, row * grid[1] + column
            for channel, value in enumerate((area, area * steps[0], area * steps[1])):
                total[channel] += np.bincount(index, value, total.shape[1])
    covered = total[0] > 1e-6
    mean = np.divide(total[1:], total[0], out=np.zeros_like(total[1:]), where=covered)
    return mean.T.reshape(*grid, 2).astype(np.float32), covered.reshape(grid)


def _counting(vectors: np.ndarray, ahead: np.ndarray, coded: tuple[int, int]) -> np.ndarray:
    """Return a mask of the rows to use: past ones, and future ones in macroblocks without past."""
    columns, rows = (-(-side // _MACROBLOCK) for side in coded)
    column = (vectors["dst_x"] // _MACROBLOCK).clip(0, columns - 1)
    row = (vectors["dst_y"] // _MACROBLOCK).clip(0, rows - 1)
    has_past = np.zeros((rows, columns), bool)
    has_past[row[~ahead], column[~ahead]] = True
    return ~(ahead & has_past[row, column])


def _overlaps(
    first: np.ndarray, last: np.ndarray, cell: int, cells: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the cells that blocks overlap along one axis, each with the length of the overlap."""
    start = np.minimum((first / cell).astype(np.int64), cells - 1)
    reach = int(((last - 1e-9) / cell - start).max(initial=0))
    found = []
    for step in range(reach + 1):
        index = start + step
        # The last cell takes what rounding puts beyond its end.
        until = np.where(index >= cells - 1, np.inf, (index + 1) * cell)
        shared = np.minimum(last, until) - np.maximum(first, index * cell)
        found.append((np.minimum(index, cells - 1), shared.clip(0)))
    return found
