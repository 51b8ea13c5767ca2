"""The layout around the panels: a header, captions above columns, labels beside rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tatscli.visualize.panels import Row
from tatscli.visualize.text import (
    LARGE,
    SMALL,
    Colour,
    Picture,
    draw_text,
    fit,
    line_height,
    text_width,
    wrap,
)

_PAPER: Colour = (24, 24, 28)
_STRONG: Colour = (240, 240, 240)
_SOFT: Colour = (176, 176, 184)

_MARGIN = 8
_GAP = 4
_LABELS = 192  # width of the column of labels
_RAMP = 10  # height of a colour scale


def compose(
    title: Sequence[str], captions: Sequence[str], rows: Sequence[Row], columns: Sequence[int]
) -> Picture:
    """Draw one page.

    Args:
        title: Lines of the header.
        captions: What stands above each column.
        rows: Labelled rows of panels.
        columns: Which frame of the rows each column shows.

    Returns:
        (H, W, 3) uint8; its size depends only on the numbers of lines, rows and columns and on
        the panels' size.
    """
    tall, wide = rows[0].panels_TYX3.shape[1:3]
    line = line_height(LARGE)
    top = _MARGIN + line * len(title) + line
    left = _LABELS + _MARGIN
    width = left + len(columns) * (wide + _GAP) - _GAP + _MARGIN
    height = top + len(rows) * (tall + _GAP) - _GAP + _MARGIN
    # Video formats want even sides.
    page: Picture = np.full((height + height % 2, width + width % 2, 3), _PAPER, np.uint8)
    for place, text in enumerate(title):
        colour = _SOFT if place else _STRONG
        _line(page, _MARGIN, _MARGIN + place * line, text, width - 2 * _MARGIN, colour)
    for place, (caption, frame) in enumerate(zip(captions, columns, strict=True)):
        x = left + place * (wide + _GAP)
        _line(page, x, top - line, caption, wide, _SOFT)
        for order, row in enumerate(rows):
            y = top + order * (tall + _GAP)
            page[y : y + tall, x : x + wide] = row.panels_TYX3[frame]
    for order, row in enumerate(rows):
        _label(page, _MARGIN, top + order * (tall + _GAP), row)
    return page


def stack(pages: Sequence[Picture]) -> Picture:
    """Put pages of one width under each other."""
    return np.concatenate(pages)


def beside(pages: Sequence[Picture]) -> Picture:
    """Put pages next to each other, the first being the highest."""
    height = pages[0].shape[0]
    filled = []
    for page in pages:
        paper = np.full((height - page.shape[0], page.shape[1], 3), _PAPER, np.uint8)
        filled.append(np.concatenate([page, paper]))
    return np.concatenate(filled, axis=1)


def _line(page: Picture, x: int, y: int, text: str, width: int, colour: Colour) -> None:
    """Write one line, small if it is long, cut off if it is longer still."""
    shown, size = fit(text, width)
    draw_text(page, x, y, shown, colour=colour, size=size)


def _label(page: Picture, x: int, y: int, row: Row) -> None:
    """Write a row's name, its notes and its colour scale."""
    width = _LABELS - _MARGIN
    for text in wrap(row.label, width, LARGE):
        _line(page, x, y, text, width, _STRONG)
        y += line_height(LARGE)
    y += _GAP
    for note in row.notes:
        for text in wrap(note, width, SMALL):
            draw_text(page, x, y, text, colour=_SOFT, size=SMALL)
            y += line_height(SMALL)
        y += _GAP
    if row.scale is not None:
        page[y : y + _RAMP, x : x + width] = row.scale.ramp(width)
        y += _RAMP + _GAP
        draw_text(page, x, y, row.scale.low, colour=_SOFT, size=SMALL)
        end = x + width - text_width(row.scale.high, SMALL)
        draw_text(page, end, y, row.scale.high, colour=_SOFT, size=SMALL)
