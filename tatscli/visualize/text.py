"""Text in pictures: lines of any script, fitted into a width.

Pillow's own font has the letters of English. Other characters come from a font of the system; those
that none has, and those that cannot be seen, are written as Python's escapes.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import unicodedata
from bisect import bisect
from functools import cache, lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Picture = np.ndarray
"""(H, W, 3) uint8, written in place."""

Colour = tuple[int, int, int]

LARGE = 17
"""Size of titles and labels: pixels of the em."""
SMALL = 12
"""Size of notes."""

_JOINERS = {"\u200c", "\u200d"}  # unseen, but they shape the letters of Persian and Indian names


class _Source(NamedTuple):
    """Where a font comes from: a file and which face of it, or Pillow itself."""

    file: str | None = None
    face: int = 0


_OWN = _Source()
_WIDE = (_Source("DejaVuSans.ttf"), _Source("Arial Unicode.ttf"))
"""Fonts of many scripts that Linux and macOS often have; Pillow looks for them by name."""


def draw_text(picture: Picture, x: int, y: int, text: str, *, colour: Colour, size: int) -> None:
    """Write one line with its top left corner at (x, y); what leaves the picture is cut off."""
    ink, rest = _ink(text, size, colour)
    inside = picture[y : y + ink.shape[0], x : x + ink.shape[1]]
    height, width, _ = inside.shape
    inside[:] = (inside * rest[:height, :width] + ink[:height, :width]) >> 8


def line_height(size: int) -> int:
    """Return the pixels from one line to the next."""
    return sum(_font(_OWN, size).getmetrics())


@lru_cache(1024)
def text_width(text: str, size: int) -> int:
    """Return the width of one line in pixels."""
    return math.ceil(sum(_length(_font(source, size), part) for source, part in _runs(text)))


@lru_cache(1024)
def fit(text: str, width: int, sizes: tuple[int, ...] = (LARGE, SMALL)) -> tuple[str, int]:
    """Return what of a line fits into `width` pixels, and its size: the first of `sizes` that does.

    It is small if it is long, and cut off at the end if it is longer still.
    """
    for size in sizes:
        if text_width(text, size) <= width:
            return text, size
    text, smallest = _legible(text), sizes[-1]
    lengths = range(1, len(text))
    kept = bisect(lengths, width, key=lambda length: text_width(text[:length] + "…", smallest))
    return text[:kept] + "…", smallest


@lru_cache(1024)
def wrap(text: str, width: int, size: int) -> list[str]:
    """Break text between words into lines that fit into `width` pixels, if no word is wider."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


@lru_cache(256)
def _ink(text: str, size: int, colour: Colour) -> tuple[np.ndarray, np.ndarray]:
    """Render a line: what to add to a picture times what to leave of it, in 256ths.

    Both are (line height, width, 3) uint16, kept like that since films write most lines again in
    every frame.
    """
    page = Image.new("L", (max(1, text_width(text, size)), line_height(size)))
    draw = ImageDraw.Draw(page)
    baseline, _ = _font(_OWN, size).getmetrics()
    x = 0.0
    for source, part in _runs(text):
        font = _font(source, size)
        draw.text((x, baseline), part, 255, font, anchor="ls", direction=_direction(font))
        x += _length(font, part)
    share = np.asarray(page, np.uint16)[..., None].repeat(3, axis=-1)
    share += share >> 7  # 255 is all
    return share * np.array(colour, np.uint16), 256 - share


def _length(font: ImageFont.FreeTypeFont, part: str) -> float:
    return font.getlength(part, direction=_direction(font))


def _direction(font: ImageFont.FreeTypeFont) -> str | None:
    """Return what a line begins with, whatever is in it: its end is the file's suffix."""
    return "ltr" if font.layout_engine == ImageFont.Layout.RAQM else None


@lru_cache(1024)
def _runs(text: str) -> list[tuple[_Source, str]]:
    """Split a line by the fonts it takes: one, if one of them has all its characters."""
    if text.isascii() and text.isprintable():  # almost every line, and films have a lot of them
        return [(_OWN, text)]
    text = _legible(text)
    sources = [_source_of(character) or _OWN for character in text]
    for source in dict.fromkeys(sources):
        if all(_has(source, character) for character in text):
            return [(source, text)]
    for place, character in enumerate(text[1:], 1):  # words and spaces of one script stay together
        if _has(sources[place - 1], character):
            sources[place] = sources[place - 1]
    pairs = groupby(zip(sources, text, strict=True), key=lambda pair: pair[0])
    return [(source, "".join(character for _, character in run)) for source, run in pairs]


def _legible(text: str) -> str:
    """Return a line in which every character can be drawn: `\\n` for a line break, and so on."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(
        character if _is_drawn(character) else _escape(character) for character in composed
    )


def _is_drawn(character: str) -> bool:
    return (character.isprintable() or character in _JOINERS) and _source_of(character) is not None


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # a space of another width
        return " "
    return character.encode("unicode_escape").decode()


@cache
def _source_of(character: str) -> _Source | None:
    """Find a font that has a character."""
    for source in _known():
        if _has(source, character):
            return source
    matching = _matching(character)
    if matching is None or not _has(matching, character):
        return None
    _known().append(matching)
    return matching


@cache
def _known() -> list[_Source]:
    """Return the fonts to try, best first; those that fontconfig finds are added."""
    return [_OWN, *(source for source in _WIDE if _has(source, "A"))]


def _matching(character: str) -> _Source | None:
    """Ask fontconfig, where it is there, for a font that has a character; it may be mistaken."""
    program = shutil.which("fc-match")
    if program is None:
        return None
    wish = f"sans:charset={ord(character):x}"
    asked = subprocess.run(
        [program, "--format", "%{index} %{file}", wish], capture_output=True, check=False
    )
    face, _, file = os.fsdecode(asked.stdout).partition(" ")
    return _Source(file, int(face)) if file and face.isdigit() else None


@cache
def _has(source: _Source, character: str) -> bool:
    """Whether a font is there and draws a character as something else than what it has not."""
    try:
        drawn, missing = (_font(source, LARGE).getmask(one) for one in (character, "\U0010ffff"))
    except OSError:  # no such font, or one of bitmaps in other sizes
        return False
    return (drawn.size, bytes(drawn)) != (missing.size, bytes(missing))


@cache
def _font(source: _Source, size: int) -> ImageFont.FreeTypeFont:
    """Open a font.

    Raises:
        OSError: It is not there, or has no such size.
    """
    if source.file is not None:
        return ImageFont.truetype(source.file, size, source.face)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # of a given size it is
    return font
