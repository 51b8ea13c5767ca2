"""The page: panels where they belong, labels and captions beside them, one size for all pages."""

import numpy as np

from tatscli.visualize.compose import compose
from tatscli.visualize.panels import Row, Scale

TALL, WIDE = 50, 70


def rows(count=2, frames=3, **more):
    """Row r, frame f is all of the colour (10 r, 20 f, 5)."""
    return [
        Row(
            f"row {r}",
            ["a note that is long enough for two lines"],
            np.stack(
                [np.full((TALL, WIDE, 3), (10 * r, 20 * f, 5), np.uint8) for f in range(frames)]
            ),
            **more,
        )
        for r in range(1, count + 1)
    ]


def page(title=("title",), captions=("left", "right"), columns=(0, 2), **more):
    return compose(title, captions, rows(**more), columns)


def test_each_panel_is_there_once_whole_and_in_order():
    found = page()
    for r in (1, 2):
        for f, there in ((0, True), (1, False), (2, True)):
            match = (found == (10 * r, 20 * f, 5)).all(axis=-1)
            assert match.sum() == (TALL * WIDE if there else 0)
            if there:
                y, x = np.nonzero(match)
                assert (np.ptp(y), np.ptp(x)) == (TALL - 1, WIDE - 1)
    tops = [np.nonzero((found == (10 * r, 0, 5)).all(axis=-1))[0].min() for r in (1, 2)]
    lefts = [np.nonzero((found == (10, 20 * f, 5)).all(axis=-1))[1].min() for f in (0, 2)]
    assert tops[0] < tops[1] and lefts[0] < lefts[1]


def test_a_film_keeps_its_size_whatever_the_words_say():
    sizes = {
        page(title=(text, "", "x"), captions=(text, "")).shape
        for text in ("", "short", "a very long name " * 30, "unicode ü 視\n\udcff")
    }
    assert len(sizes) == 1
    height, width, _ = sizes.pop()
    assert height % 2 == width % 2 == 0


def test_title_captions_labels_and_scale_are_written():
    bare = compose([""], ["", ""], [Row("", [], row.panels_TYX3) for row in rows()], (0, 2))
    scale = Scale("0.5x", "1.5x")
    written = compose(
        ["t"], ["c", "d"], [Row("label", [], r.panels_TYX3, scale) for r in rows()], (0, 2)
    )
    assert bare.shape == written.shape
    y, x = np.nonzero((bare != written).any(axis=-1))
    panels = (written[..., 2] == 5) & (written[..., 0] % 10 == 0)
    assert not panels[y, x].any()
    first = np.nonzero((bare == (10, 0, 5)).all(axis=-1))
    assert (y < first[0].min()).any() and (x[y >= first[0].min()] < first[1].min()).all()
    colours = np.unique(written[y, x], axis=0)
    assert (np.ptp(colours, axis=1) > 20).sum() > 50  # the ramp; words are grey


def test_long_lines_shrink_and_then_end_in_dots():
    plain, small, cut = (page(title=(text,)) for text in ("x" * 10, "x" * 60, "x" * 400))
    heights = [np.nonzero((one[:40] > 200).all(axis=-1))[0].max() for one in (plain, small, cut)]
    assert heights[0] > heights[1] == heights[2]
