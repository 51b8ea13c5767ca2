"""Motion vectors as arrows in a picture.

Shapes: K arrows; the numbers are coordinates, x first.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from tatscli.visualize.text import Colour, Picture

LONGEST = 3
"""Sides of a token; longer arrows are cut to it so that neighbours stay readable."""

_SHORTEST = 1.5  # pixels of the picture; shorter ones are dots that point nowhere
_FINER = 3  # drawn so many times larger and reduced, for smooth edges
_HEAD = 5.0  # pixels of the picture along each barb, less on short arrows
_BACKWARDS = np.array([[-0.85, -0.53], [0.53, -0.85]])  # a turn by 148 degrees
_LINE, _RIM = 1.6, 4.0  # widths in pixels of the picture
_SHADE = (0, 0, 0, 178)  # of the rim, which tells arrows from bright content and from each other


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
    row_K, column_K = np.nonzero(np.hypot(*motion_hw2.T).T * zoom >= _SHORTEST)
    if not row_K.size:
        return False
    step_K2 = motion_hw2[row_K, column_K] * float(zoom)
    length_K1 = np.hypot(*step_K2.T)[:, None]
    longest = LONGEST * width / columns
    step_K2 *= np.minimum(1, longest / length_K1)
    barb_K2 = step_K2 * np.minimum(0.6, _HEAD / np.minimum(length_K1, longest))
    end_K2 = np.stack([(column_K + 0.5) * width / columns, (row_K + 0.5) * height / rows], axis=1)
    shaft_K4 = np.concatenate([end_K2 - step_K2, end_K2], axis=1)
    left_K2, right_K2 = end_K2 + barb_K2 @ _BACKWARDS.T, end_K2 + barb_K2 @ _BACKWARDS
    head_K6 = np.concatenate([left_K2, end_K2, right_K2], axis=1)

    layer = Image.new("RGBA", (width * _FINER, height * _FINER))
    draw = ImageDraw.Draw(layer)
    lines = [*(shaft_K4 * _FINER).tolist(), *(head_K6 * _FINER).tolist()]
    for ink, thickness in ((_SHADE, _RIM), (colour, _LINE)):  # no rim cuts another arrow short
        for line in lines:
            draw.line(line, ink, round(thickness * _FINER), joint="curve")
    layer = layer.reduce(_FINER)
    page = Image.fromarray(picture)
    page.paste(layer, mask=layer)
    picture[:] = np.asarray(page)
    return True
