"""Taking the camera's own motion out of a motion field, so that what is left are moving things."""

from __future__ import annotations

from typing import Literal

import numpy as np

Camera = Literal["none", "median", "affine"]

_ROUNDS = 10  # of reweighting; the fit stands still long before


def remove_camera(field: np.ndarray, covered: np.ndarray, model: Camera) -> np.ndarray:
    """Subtract global motion from one frame's field.

    Args:
        field: (gh, gw, 2), x first.
        covered: (gh, gw) bool, cells whose motion is known; the others stay 0.
        model: `median` is one vector for the whole frame, a pan. `affine` has six parameters, which
            hold pan, zoom and roll, fitted by iteratively reweighted least squares with Tukey's
            biweight, so that less than half of the frame may move on its own.

    Returns:
        (gh, gw, 2) float32.
    """
    if model == "none" or not covered.any():
        return field
    known = field[covered].astype(np.float64)
    global_motion = np.broadcast_to(np.median(known, axis=0), field.shape)
    if model == "affine" and len(known) > 6:
        global_motion = _affine(field, covered, known, global_motion[0, 0])
    return np.where(covered[..., None], field - global_motion, 0).astype(np.float32)


def _affine(
    field: np.ndarray, covered: np.ndarray, known: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return the affine motion of every cell (gh, gw, 2)."""
    rows, columns = field.shape[:2]
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    everywhere = np.stack([np.ones_like(x), x, y], axis=-1)  # (gh, gw, 3)
    places = everywhere[covered]
    fitted = np.broadcast_to(start, known.shape)
    parameters = np.zeros((3, 2))
    for _ in range(_ROUNDS):
        distance = np.linalg.norm(known - fitted, axis=1)
        # A floor of a quarter pixel: the grain of vectors is no outlier.
        width = 4.685 * max(1.4826 * float(np.median(distance)), 0.25)
        weight = np.clip(1 - (distance / width) ** 2, 0, None)  # the root of the biweight
        parameters = np.linalg.lstsq(places * weight[:, None], known * weight[:, None], rcond=None)[
            0
        ]
        fitted = places @ parameters
    return everywhere @ parameters
