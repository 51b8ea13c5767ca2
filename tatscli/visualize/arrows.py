"""Motion vectors as arrows in a picture."""

from __future__ import annotations

import numpy as np

from tatscli.visualize.font import Colour, Picture

LONGEST = 3
"""Sides of a token; longer arrows are cut to it so that neighbours stay readable."""

_SHORTEST = 1.5  # pixels of the picture; shorter ones are dots that point nowhere


def draw_arrows(picture: Picture, motion_hw2: np.ndarray, *, zoom: int, colour: Colour) -> bool:
    """Draw the motion of each token: from where its content was to the middle of the token.

    Args:
        picture: (H, W, 3) uint8, the view enlarged `zoom` times; written in place.
        motion_hw2: Displacement of the content in pixels of the view, x first.
        zoom: Picture pixels per pixel of the view.
        colour: Of shaft and head.

    Returns:
        Whether there is any arrow: one too short to point anywhere is not drawn.
    """
    height, width = picture.shape[:2]
    rows, columns, _ = motion_hw2.shape
    longest = LONGEST * width / columns
    drawn_hw = np.hypot(*motion_hw2.T).T * zoom >= _SHORTEST
    for row, column in zip(*np.nonzero(drawn_hw), strict=True):
        end = np.array([(column + 0.5) * width / columns, (row + 0.5) * height / rows])
        step = motion_hw2[row, column] * zoom
        step = step * min(1.0, longest / np.hypot(*step))
        _arrow(picture, end - step, end, colour)
    return bool(drawn_hw.any())


def _arrow(picture: Picture, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
    """Draw shaft and two barbs, a dark rim around them, blended at the edges."""
    low = np.maximum(np.floor(np.minimum(start, end)).astype(int) - 6, 0)
    high = np.maximum(np.ceil(np.maximum(start, end)).astype(int) + 7, 0)
    part = picture[low[1] : high[1], low[0] : high[0]]
    if part.size == 0:
        return
    y, x = np.mgrid[low[1] : low[1] + part.shape[0], low[0] : low[0] + part.shape[1]]
    step = end - start
    length = np.hypot(*step)
    ahead = step / length
    barb = ahead * min(5.0, 0.6 * length)
    turn = np.array([[-0.85, -0.53], [0.53, -0.85]])  # 148 degrees, backwards
    distance = np.minimum.reduce(
        [
            _distance(x, y, start, end),
            _distance(x, y, end, end + turn @ barb),
            _distance(x, y, end, end + turn.T @ barb),
        ]
    )
    rim = np.clip(2.2 - distance, 0, 1)[..., None] * 0.7
    ink = np.clip(1.2 - distance, 0, 1)[..., None]
    part[:] = (part * (1 - rim) * (1 - ink) + np.array(colour) * ink).astype(np.uint8)


def _distance(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the line segment between `a` and `b`."""
    along = b - a
    share = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(1e-9, float(along @ along))
    share = np.clip(share, 0, 1)
    return np.hypot(x - a[0] - share * along[0], y - a[1] - share * along[1])
