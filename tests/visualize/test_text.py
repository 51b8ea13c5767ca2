"""Text in pictures: every character is there or escaped, in its line, and inside its width."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from tatscli.visualize import text as module
from tatscli.visualize.text import LARGE, SMALL, draw_text, fit, line_height, text_width, wrap

COLOUR = (255, 128, 1)
ANYTHING = st.text(st.characters(exclude_categories=()), max_size=12)  # surrogates, too


def forget() -> None:
    for cached in (module._source_of, module._known, module._has, module._font, module._runs):
        cached.cache_clear()
    for cached in (text_width, fit, wrap, module._ink):
        cached.cache_clear()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A system without any font; returns a folder for programs, the whole of its PATH."""
    forget()
    monkeypatch.setattr(module, "_WIDE", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    yield tmp_path
    forget()


@pytest.fixture
def cyrillic():
    """A font of the system with letters that Pillow's own has not."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", SMALL).path
    except OSError:
        pytest.skip("no DejaVu Sans here")


def fontconfig(folder, answer: str) -> None:
    program = folder / "fc-match"
    program.write_text(f"#!/bin/sh\necho \"$*\" > '{folder}/asked'\nprintf '%s' '{answer}'\n")
    program.chmod(0o755)


def write(text: str, *, size: int = SMALL, x: int = 0, y: int = 0) -> np.ndarray:
    page = np.zeros((30, 300, 3), np.uint8)
    draw_text(page, x, y, text, colour=COLOUR, size=size)
    return page


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_every_printable_character_has_a_glyph_of_its_own(size):
    glyphs = {write(character, size=size).tobytes() for character in string.printable[:95]}
    assert len(glyphs) == 95


def test_an_l_is_a_stem_and_a_foot():
    y, x = np.nonzero(write("L", size=LARGE)[..., 0] > 128)
    stem = x < x.min() + 2
    assert np.ptp(y[stem]) == np.ptp(y) > 8
    assert (y[~stem] >= y.max() - 1).all() and (~stem).any()


def test_ink_has_its_colour_and_its_edges_are_mixed_with_what_was_there():
    white = np.full((30, 300, 3), 255, np.uint8)
    draw_text(white, 0, 0, "Hill", colour=(10, 20, 30), size=LARGE)
    found = {tuple(int(value) for value in pixel) for pixel in white.reshape(-1, 3)}
    assert {(10, 20, 30), (255, 255, 255)} < found
    for red, green, blue in found:  # on the way from one to the other
        share = (255 - red) / 245
        assert (green, blue) == pytest.approx((255 - 235 * share, 255 - 225 * share), abs=1.5)


def test_a_line_stands_where_it_is_put_and_is_cut_off_where_the_picture_ends():
    whole = write("Ag")
    assert (write("Ag", x=5, y=3)[3:, 5:] == whole[:-3, :-5]).all()
    assert (write("Ag", x=292, y=20)[20:, 292:] == whole[:10, :8]).all()
    assert not write("Ag", x=300).any() and not write("Ag", y=30).any()


def test_a_line_written_again_covers_what_it_is_written_on_this_time():
    for grey in (0, 90):
        page = np.full((30, 60, 3), grey, np.uint8)
        draw_text(page, 0, 0, "again", colour=COLOUR, size=SMALL)
        assert (page == grey).all(axis=2).mean() > 0.7 and (page == COLOUR).all(axis=2).any()


def test_what_no_font_has_and_what_cannot_be_seen_is_escaped(alone):
    for text, shown in (
        ("ж 中", r"\u0436 \u4e2d"),
        ("two\nlines\t\x1b[1m", r"two\nlines\t\x1b[1m"),
        ("bad\udcff", r"bad\udcff"),
        ("\U0001f6b2", r"\U0001f6b2"),
        ("e\u0301", r"\xe9"),  # composed
        ("a\u202fb\u202e", r"a b\u202e"),  # a narrow space, and one that turns the text around
    ):
        assert (write(text) == write(shown)).all(), shown


@settings(max_examples=60, deadline=None)
@given(text=ANYTHING)
def test_any_name_can_be_fitted_and_drawn(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_matching", lambda character: None)  # thousands of questions
        shown, size = fit(text, 60)
        assert text_width(shown, size) <= 60
        assert not write(text)[line_height(SMALL) :].any()
    module._source_of.cache_clear()


def test_letters_of_another_script_are_drawn_in_a_font_that_has_them(cyrillic):
    assert text_width("ж", SMALL) < text_width(r"\u0436", SMALL) / 2
    letters = {write(letter).tobytes() for letter in "жλéł"}
    assert len(letters) == 4
    assert (write("e\u0301") == write("é")).all()


def test_a_line_has_one_font_if_one_will_do(cyrillic, alone):
    fontconfig(alone, f"0 {cyrillic}")
    whole = ImageFont.truetype(cyrillic, SMALL).getlength("clip ж.avi")
    assert text_width("clip ж.avi", SMALL) == pytest.approx(whole, abs=1)


def test_fontconfig_is_asked_once_a_script_and_believed_if_it_is_right(cyrillic, alone):
    fontconfig(alone, f"0 {cyrillic}")
    for letter in "жд":
        assert not (write(letter) == write(module._escape(letter))).all()
        assert (alone / "asked").read_text().strip().endswith(":charset=436")
    assert (write("中") == write(r"\u4e2d")).all()
    assert (alone / "asked").read_text().strip().endswith(":charset=4e2d")


@pytest.mark.parametrize("answer", ["", "0 ", "0 /no/such/font.ttf", "x y"])
def test_fontconfig_may_know_nothing(alone, answer):
    fontconfig(alone, answer)
    assert (write("ж") == write(r"\u0436")).all()


def test_lines_of_all_scripts_are_as_high(cyrillic):
    for text in ("Ägypten", "ξφΨ", "Щўй", "دراجة"):
        assert write(text).any() and not write(text)[line_height(SMALL) :].any()


def test_long_lines_are_small_and_longer_ones_cut_off():
    text = "a clip with a name of some length"
    large, small = text_width(text, LARGE), text_width(text, SMALL)
    assert small < large
    assert fit(text, large) == (text, LARGE)
    assert fit(text, large - 1) == fit(text, small) == (text, SMALL)
    assert fit(text, large, (LARGE + 9,))[1] == LARGE + 9
    cut, size = fit(text, small - 1)
    assert size == SMALL and cut.endswith("…") and text.startswith(cut[:-1])
    assert text_width(cut, SMALL) < small
    longer = text[: len(cut)] + "…"
    assert text_width(longer, SMALL) > small - 1  # no more would have fitted


def test_lines_break_between_words():
    width = text_width("one two", SMALL)
    assert wrap("one two three", width, SMALL) == ["one two", "three"]
    assert wrap("one two three", width - 1, SMALL) == ["one", "two", "three"]
    assert wrap("unbreakable", 5, SMALL) == ["unbreakable"]
    assert wrap("", width, SMALL) == []
