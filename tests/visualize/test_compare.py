"""Several masks over the same frames: a row each, the same as each would draw alone."""

import av
import numpy as np
import pytest

from tatscli.recipe.schema import BlockMask, MgmMask, RandomMask, TubeMask
from tatscli.visualize import compare, render
from tatscli.visualize.compare import Candidate, render_comparison
from tests.clips import pan
from tests.clips import render as film
from tests.visualize.fakes import layout, viewer

LAYOUT = layout("masks compared", 2)
MASKS = [
    RandomMask(kind="random", ratio=0.75),
    TubeMask(kind="tube", ratio=0.5),
    BlockMask(kind="block"),
    MgmMask(kind="mgm"),
]


@pytest.fixture
def clip(tmp_path):
    return film(tmp_path / "clip.mp4", pan(frames=20, height=48, width=80), fps=10)


@pytest.fixture
def candidates() -> list[Candidate]:
    return [Candidate(f"{mask.kind} {mask.ratio:g}", viewer(mask)) for mask in MASKS]


@pytest.fixture
def painted(monkeypatch):
    """The rows of every window, as they are painted."""
    seen = []

    def spy(*given):
        seen.append(true(*given))
        return seen[-1]

    true = compare._rows
    monkeypatch.setattr(compare, "_rows", spy)
    return seen


def draw(clip, out, candidates, made=LAYOUT, seed=0):
    seen = []
    rate = render_comparison(
        clip, out, candidates, made, seed=seed, watch=lambda *both: seen.append(both)
    )
    return seen, rate


def shapes(path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(frame.height, frame.width) for frame in container.decode(video=0)]


def test_a_row_a_mask_between_input_and_motion(clip, tmp_path, candidates, painted):
    seen, rate = draw(clip, tmp_path / "sheet.png", candidates)
    (rows,) = painted
    labels = ["input", "random 0.75", "tube 0.5", "block 0.75", "mgm 0.75", "motion"]
    assert [row.label for row in rows] == labels
    assert rate is None and len(seen) == 1 and len(seen[0][1]) == 4
    for row in rows[1:-1]:
        assert row.notes[0].startswith("grey is hidden: ")
        assert any("motion of hidden tokens" in note for note in row.notes)


def test_rows_show_what_their_mask_hides(clip, tmp_path, candidates, painted):
    ((_, results),), _ = draw(clip, tmp_path / "sheet.png", candidates)
    frames, *rows, _ = painted[0]
    for row, masked in zip(rows, results, strict=True):
        grey = (row.panels_TYX3 != frames.panels_TYX3).any(axis=-1)
        cells = grey.reshape(2, 2, 4, 48, 4, 48).mean(axis=(1, 3, 5)).ravel()
        hidden = set(np.flatnonzero(cells > 0.5))
        assert hidden == set(range(32)) - set(masked.plan.visible_BK[0].tolist())


def test_each_mask_draws_as_it_does_alone(clip, tmp_path, candidates):
    """In every window: no mask takes random numbers from another."""
    together, _ = draw(clip, tmp_path / "all.mp4", candidates, seed=3)
    assert len(together) == 3
    for place, candidate in enumerate(candidates):
        alone = []
        render.render(
            clip,
            tmp_path / "one.mp4",
            candidate.viewer,
            LAYOUT,
            seed=3,
            watch=lambda _, masked, alone=alone: alone.append(masked.plan.visible_BK.tolist()),
        )
        assert alone == [results[place].plan.visible_BK.tolist() for _, results in together]


def test_films_of_many_masks_go_on_in_another_column(clip, tmp_path, candidates):
    high = shapes(draw_to(tmp_path / "high.mp4", clip, candidates, 6))
    wide = shapes(draw_to(tmp_path / "wide.gif", clip, candidates, 3))
    assert len(high) == len(wide) == 12  # 6 rows: one column, or two of three
    assert wide[0][1] == 2 * high[0][1]
    assert high[0][0] - wide[0][0] == pytest.approx(3 * 192, abs=20)


def draw_to(out, clip, candidates, tallest):
    draw(clip, out, candidates, layout("masks compared", 2, tallest=tallest))
    return out
