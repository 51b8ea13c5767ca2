"""Removing camera motion from motion fields, so that only moving objects are left."""

from __future__ import annotations

from typing import Literal

import numpy as np

Camera = Literal["none", "median", "affine"]

_ROUNDS = 10  # of reweighting, at most
_CONVERGED = 0.01  # pixels; the largest change of any cell in the last round
_FEW = 6  # cells; too few for six parameters
_RIDGE = 1e-9  # keeps the equations solvable if all cells lie on one line


def remove_camera(field: np.ndarray, covered: np.ndarray | None, model: Camera) -> np.ndarray:
    """Subtract each field's global motion.

    Args:
        field: (..., gh, gw, 2), x first.
        covered: (..., gh, gw) bool, cells whose motion is known; the others are ignored and stay
            0. None if unknown: then the camera is estimated over all cells, since with a static
            camera most of them are 0; and a cell of exactly 0 stays 0, because a cell without a
            vector cannot be told from one that does not move.
        model: `median` is one vector for the whole frame, a pan. `affine` has six parameters for
            pan, zoom and roll, fitted by iteratively reweighted least squares with Tukey's
            biweight, which tolerates up to half of the frame moving on its own; with six known
            cells or fewer it is the median.

    Returns:
        (..., gh, gw, 2) float32.
    """
    if model == "none":
        return field
    rows, columns = field.shape[-3:-1]
    known_Fn = None if covered is None else covered.reshape(-1, rows * columns)
    moves_F2n = np.moveaxis(field.reshape(-1, rows * columns, 2), -1, 1).astype(np.float64)
    global_F2n = _median(moves_F2n, None if known_Fn is None else known_Fn[:, None])[..., None]
    if model == "affine":
        counts_Fn = np.ones((1, rows * columns), bool) if known_Fn is None else known_Fn
        enough_F11 = counts_Fn.sum(-1)[:, None, None] > _FEW
        affine_F2n = _affine(moves_F2n, known_Fn, global_F2n, (rows, columns))
        global_F2n = np.where(enough_F11, affine_F2n, global_F2n)
    kept = (field[..., 0] != 0) | (field[..., 1] != 0) if covered is None else covered
    left = np.moveaxis(moves_F2n - global_F2n, 1, -1).reshape(field.shape)
    return np.where(kept[..., None], left, 0).astype(np.float32)


def _affine(
    moves_F2n: np.ndarray,
    known_Fn: np.ndarray | None,
    start_F21: np.ndarray,
    grid: tuple[int, int],
) -> np.ndarray:
    """Return the affine motion of every cell, (F, 2, n)."""
    y, x = np.mgrid[-1 : 1 : grid[0] * 1j, -1 : 1 : grid[1] * 1j]
    places_3n = np.stack([np.ones_like(x), x, y]).reshape(3, -1)
    squares_9n = (places_3n[:, None] * places_3n).reshape(9, -1)
    fitted_F2n = np.broadcast_to(start_F21, moves_F2n.shape)
    for _ in range(_ROUNDS):
        apart_F2n = moves_F2n - fitted_F2n
        distance_Fn = np.sqrt(apart_F2n[:, 0] ** 2 + apart_F2n[:, 1] ** 2)
        # At least a quarter pixel, the resolution of vectors: rounding is no outlier.
        width_F = 4.685 * np.maximum(1.4826 * _median(distance_Fn, known_Fn), 0.25)
        weight_Fn = np.clip(1 - (distance_Fn / width_F[:, None]) ** 2, 0, None) ** 2
        if known_Fn is not None:
            weight_Fn *= known_Fn
        normal_F33 = (weight_Fn @ squares_9n.T).reshape(-1, 3, 3) + _RIDGE * np.eye(3)
        moment_F32 = ((weight_Fn[:, None] * moves_F2n) @ places_3n.T).mT
        before_F2n, fitted_F2n = fitted_F2n, np.linalg.solve(normal_F33, moment_F32).mT @ places_3n
        if np.abs(fitted_F2n - before_F2n).max(initial=0) < _CONVERGED:
            break
    return fitted_F2n


def _median(values: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """Return the median along the last axis of the known values (None: all); 0 where none is."""
    if known is None:
        return np.median(values, axis=-1)
    known = np.broadcast_to(known, values.shape)
    count = known.sum(-1, keepdims=True)
    ordered = np.sort(np.where(known, values, np.inf), axis=-1)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, -1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), -1)
    return np.where(count > 0, (low + high) / 2, 0)[..., 0]
