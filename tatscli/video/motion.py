"""Codec motion vectors -> motion field: the displacement of content on a regular grid of cells.

FFmpeg exports, for each block, the vector from the block to its reference: `source = destination +
motion / motion_scale` (libavutil/motion_vector.h). Content therefore moved by the negative of it
where the reference is past, and will move by it where the reference is future. `src_x` and `src_y`
are rounded to whole pixels and are not used.
"""

from __future__ import annotations

import numpy as np

from tatscli.video.orientation import UPRIGHT, Orientation

_MACROBLOCK = 16


def rasterise(
    vectors: np.ndarray,
    *,
    coded: tuple[int, int],
    stored: tuple[int, int],
    cell: int,
    orientation: Orientation = UPRIGHT,
) -> np.ndarray:
    """Average the vectors of one frame over the cells of the stored picture, weighted by area.

    Where blocks of the past list and of the future list (B-frames) overlap, the past counts; areas
    without any block do not count, and a cell without any is 0.

    Args:
        vectors: FFmpeg's rows as a structured array: source, w, h, dst_x, dst_y, motion_x,
            motion_y, motion_scale.
        coded: Width and height of the decoded picture, in which the vectors are given.
        stored: Width and height of the picture they shall belong to, upright.
        cell: Side of a cell in stored pixels; the last row and column may be narrower.
        orientation: How the coded picture is turned upright.

    Returns:
        (ceil(height / cell), ceil(width / cell), 2) float32: stored pixels per frame step, x first.
    """
    blocks = _blocks(vectors, coded)
    unit = _lattice_unit(blocks)
    blocks //= unit
    columns, rows = (-(-side // _MACROBLOCK) * _MACROBLOCK // unit for side in coded)

    future = vectors["source"] > 0
    step = np.stack([vectors["motion_x"], vectors["motion_y"]]) / np.maximum(
        vectors["motion_scale"], 1
    )
    step = np.where(future, step, -step)
    field = _paint(blocks[:, ~future], step[:, ~future], rows, columns)
    if future.any():
        ahead = _paint(blocks[:, future], step[:, future], rows, columns)
        field = np.where(field[0] > 0, field, ahead)

    width, height = orientation.size(*coded)
    if orientation.transpose:
        field = field[[0, 2, 1]].swapaxes(1, 2)
    field = _integrate(field, _edges(height, stored[1], cell, orientation.flip_y) / unit)
    field = field.swapaxes(1, 2)
    field = _integrate(field, _edges(width, stored[0], cell, orientation.flip_x) / unit)

    area, moved = field[0], field[1:]  # (gw, gh) and (2, gw, gh) now
    mean = np.divide(moved, area, out=np.zeros_like(moved), where=area > 1e-6)
    mean[0] *= (-1 if orientation.flip_x else 1) * stored[0] / width
    mean[1] *= (-1 if orientation.flip_y else 1) * stored[1] / height
    return np.ascontiguousarray(mean.transpose(2, 1, 0), dtype=np.float32)


def grid_size(width: int, height: int, cell: int) -> tuple[int, int]:
    """Return the rows and columns of the motion field of a stored picture."""
    return -(-height // cell), -(-width // cell)


def _blocks(vectors: np.ndarray, coded: tuple[int, int]) -> np.ndarray:
    """Return left, right, top and bottom of each block (4, V) in pixels, inside the macroblocks."""
    limit_x, limit_y = (-(-side // _MACROBLOCK) * _MACROBLOCK for side in coded)
    w, h = vectors["w"].astype(np.int64), vectors["h"].astype(np.int64)
    left, top = vectors["dst_x"] - w // 2, vectors["dst_y"] - h // 2
    return np.stack(
        [
            np.clip(left, 0, limit_x),
            np.clip(left + w, 0, limit_x),
            np.clip(top, 0, limit_y),
            np.clip(top + h, 0, limit_y),
        ]
    )


def _lattice_unit(blocks: np.ndarray) -> int:
    """Return the largest power of two, at most a macroblock, that divides every block edge.

    On that lattice blocks are painted exactly, with 16 to 256 times fewer points than pixels.
    """
    bits = int(np.bitwise_or.reduce(blocks, axis=None)) | _MACROBLOCK
    return bits & -bits


def _paint(blocks: np.ndarray, step: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return covered (1 or 0) and mean x and y step at each lattice point: (3, rows, columns).

    Each block puts its value on its first corner and takes it back behind its ends; running sums
    fill the area between.
    """
    left, right, top, bottom = blocks
    stride = columns + 1
    corners = np.concatenate(
        [top * stride + left, top * stride + right, bottom * stride + left, bottom * stride + right]
    )
    field = np.empty((3, rows, columns))
    for channel, value in zip(field, (np.ones_like(step[0]), *step), strict=True):
        marks = np.bincount(
            corners, np.concatenate([value, -value, -value, value]), (rows + 1) * stride
        )
        channel[:] = marks.reshape(rows + 1, stride).cumsum(0).cumsum(1)[:rows, :columns]
    count = field[0]
    field[1:] /= np.maximum(count, 1)
    field[0] = count > 0
    return field


def _edges(length: int, stored: int, cell: int, flip: bool) -> np.ndarray:
    """Return the borders of the cells along an axis in coded pixels; falling if it is flipped."""
    cells = -(-stored // cell)
    edges = np.minimum(np.arange(cells + 1) * cell, stored) * (length / stored)
    return length - edges if flip else edges


def _integrate(field: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Integrate a piecewise constant field (3, n, m) along n between edges in lattice points."""
    total = np.zeros((field.shape[0], field.shape[1] + 1, field.shape[2]))
    np.cumsum(field, axis=1, out=total[:, 1:])
    whole = np.minimum(edges.astype(np.int64), field.shape[1] - 1)
    part = (edges - whole)[:, None]
    until = total[:, whole] + part * field[:, whole]
    cells = until[:, 1:] - until[:, :-1]
    return cells if edges[0] <= edges[-1] else -cells
