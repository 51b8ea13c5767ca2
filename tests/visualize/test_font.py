"""The bitmap font: every character is there, apart from the others, and stays in the picture."""

import string

import numpy as np

from tatscli.visualize.font import ADVANCE, draw_text, fitting_scale, text_width, wrap

PRINTABLE = string.printable[:95]


def write(text: str, *, scale: int = 1, x: int = 0, y: int = 0) -> np.ndarray:
    page = np.zeros((24, 80, 3), np.uint8)
    draw_text(page, x, y, text, colour=(255, 128, 1), scale=scale)
    return page


def test_every_printable_character_has_a_glyph_of_its_own():
    glyphs = {write(character).tobytes() for character in PRINTABLE}
    assert len(glyphs) == len(PRINTABLE) == 95


def test_characters_do_not_touch():
    """The last column of every cell is free, so neighbours stay apart."""
    for character in PRINTABLE:
        assert not write(character)[:, ADVANCE - 1 :].any()


def test_an_l_is_a_stem_and_a_foot():
    ink = write("L").any(axis=2)
    assert ink[:7, 0].all() and ink[6, :5].all()
    assert ink.sum() == 7 + 5 - 1


def test_colour_scale_and_place():
    small, large = write("g"), write("g", scale=2)
    assert (large[:18, :12] == small[:9, :6].repeat(2, axis=0).repeat(2, axis=1)).all()
    assert {tuple(pixel) for pixel in small.reshape(-1, 3)} == {(0, 0, 0), (255, 128, 1)}
    assert (write("g", x=5, y=3)[3:12, 5:11] == small[:9, :6]).all()


def test_what_leaves_the_picture_is_cut_off_and_what_is_unknown_is_a_question_mark():
    whole, cut = write("ab"), write("ab", x=76, y=20)
    assert (cut[20:, 76:] == whole[:4, :4]).all() and not cut[:20].any()
    assert not write("a", x=90).any()
    assert (write("ü") == write("?")).all()


def test_widths_decide_scale_and_lines():
    assert text_width("abcd", 2) == 48
    assert fitting_scale("abcd", 48) == 2
    assert fitting_scale("abcd", 47) == 1
    assert fitting_scale("abcd" * 99, 47) == 1
    assert wrap("one two three", 7 * ADVANCE) == ["one two", "three"]
