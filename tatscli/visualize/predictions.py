"""Predictions written over the frames of a video: a line of time, and a bar for every class."""

from __future__ import annotations

from collections.abc import Sequence

from tatscli.evaluation.predictions import Prediction
from tatscli.visualize.text import Colour, Picture, draw_text, fit, line_height, text_width

_SHARE = 22  # lines that would fill the height of a picture
_SIZES = (9, 48)  # pixels of the em: what can be read, and what would cover too much
_WIDEST = 24  # of the box, in ems
_WHITE: Colour = (255, 255, 255)
_BAR: Colour = (60, 140, 220)


def draw_predictions(picture: Picture, predictions: Sequence[Prediction], *, caption: str) -> None:
    """Write a caption and the most probable classes into the upper left corner.

    Letters follow the height of the picture; of a small one the classes that fit are written.

    Args:
        picture: Written in place.
        predictions: The best first.
        caption: What is written above them.
    """
    height, width = picture.shape[:2]
    low, high = _SIZES
    size = min(max(height // _SHARE, low), high)
    line, margin = line_height(size), max(2, size // 4)
    box_width = min(width, _WIDEST * size)
    room = max(0, (height - 2 * margin) // line - 1)
    shown = list(predictions)[:room]
    box = picture[: 2 * margin + line * (1 + len(shown)), :box_width]
    box[:] = box // 3
    inside = box_width - 2 * margin
    _write(box, margin, margin, caption, inside, size)
    for number, one in enumerate(shown, start=1):
        top = margin + number * line
        long = round(inside * min(max(one.probability, 0.0), 1.0))
        box[top + 1 : top + line - 1, margin : margin + long] = _BAR
        share = f"{one.probability:.0%}"
        taken = text_width(share, size)
        _write(box, margin, top, one.name, inside - taken - margin, size)
        draw_text(box, box_width - margin - taken, top, share, colour=_WHITE, size=size)


def _write(box: Picture, left: int, top: int, text: str, width: int, size: int) -> None:
    if width > 0:
        shown, _ = fit(text, width, (size,))
        draw_text(box, left, top, shown, colour=_WHITE, size=size)
