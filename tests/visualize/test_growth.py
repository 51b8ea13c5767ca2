"""Strips of one window at several checkpoints: comparable colours, numbers beside them."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tatscli.errors import UsageError
from tatscli.masking.plan import MaskPlan
from tatscli.visualize import growth
from tatscli.visualize.growth import Snapshot, refuse_sheet, render_growth
from tatscli.visualize.panels import SMALLEST_PANEL
from tatscli.visualize.viewer import MaskedWindow
from tests.visualize.fakes import GRID, layout, window

LAYOUT = layout("tats mask, ratio 0.875", 4)
LIFTS = [torch.ones(32), torch.ones(32)]
LIFTS[1][7], LIFTS[1][20] = 2.0, 0.0
SEEN = [[0, 1, 2, 3], [5, 7, 21, 22]]


def stages(windows=1) -> list[Snapshot]:
    """A uniform policy, and one that prefers token 7 to token 20 and shows what moves."""
    made = []
    for number, (lift_N, visible) in enumerate(zip(LIFTS, SEEN, strict=True)):
        plan = MaskPlan.from_visible(torch.tensor([visible]), 32)
        made.append(Snapshot(100 * number, [MaskedWindow(plan, lift_N / 32)] * windows))
    return made


@pytest.fixture
def pages(monkeypatch):
    """What is handed to `compose`: title lines, and rows by label."""
    seen = []

    def spy(title, captions, rows, columns):
        seen.append((title, captions, {row.label: row for row in rows}))
        return true(title, captions, rows, columns)

    true = growth.compose
    monkeypatch.setattr(growth, "compose", spy)
    return seen


def draw(out: Path, windows=1, laid=LAYOUT, of=None):
    made = [window(seed=number) for number in range(windows)]
    return render_growth(Path("clip.mp4"), out, made, of or stages(windows), laid, GRID)


def tokens(panels: np.ndarray) -> np.ndarray:
    """Cut panels of one frame a slice into tokens: (N, rows, columns, 3)."""
    side = SMALLEST_PANEL // GRID[1]
    cut = panels.reshape(*GRID[:1], GRID[1], side, GRID[2], side, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(32, side, side, 3)


def test_a_sheet_holds_a_strip_a_checkpoint_under_the_frames(tmp_path, pages):
    assert draw(tmp_path / "sheet.png") is None
    ((title, captions, rows),) = pages
    assert list(rows) == [
        "input",
        "motion",
        "step 0 probability",
        "step 0 visible tokens",
        "step 100 probability",
        "step 100 visible tokens",
    ]
    assert captions == ["frame 0, 0.00 s", "frame 8, 1.00 s"]  # the first of each slice
    assert "checkpoints shown: 2" in title


def test_all_heat_maps_share_one_scale_and_its_colours(tmp_path, pages):
    draw(tmp_path / "sheet.png")
    rows = pages[0][2]
    early, late = (rows[f"step {step} probability"] for step in (0, 100))
    assert early.scale == late.scale
    assert (late.scale.low, late.scale.high) == ("0.00x", "2.00x")
    alike = (tokens(early.panels_TYX3) == tokens(late.panels_TYX3)).all(axis=(1, 2, 3))
    assert np.flatnonzero(~alike).tolist() == [7, 20]


def test_strips_tell_step_entropy_and_motion(tmp_path, pages):
    draw(tmp_path / "sheet.png")
    rows = pages[0][2]
    assert "entropy 1.000, uniform 1" in rows["step 0 probability"].notes
    assert "entropy 0.988, uniform 1" in rows["step 100 probability"].notes
    assert "motion of visible tokens 0.00 x chance" in rows["step 0 visible tokens"].notes
    assert "motion of visible tokens 8.00 x chance" in rows["step 100 visible tokens"].notes
    hidden = (tokens(rows["step 100 visible tokens"].panels_TYX3) <= 128).all(axis=(1, 2, 3))
    assert np.flatnonzero(~hidden).tolist() == SEEN[1]


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_goes_through_the_training_window_by_window(tmp_path, pages, suffix):
    out = tmp_path / f"film{suffix}"
    assert draw(out, windows=2) == 2.0
    with av.open(str(out)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 4 == len(pages)
    steps = [next(line for line in title if "step" in line) for title, _, _ in pages]
    assert steps == ["checkpoint 1 of 2: step 0", "checkpoint 2 of 2: step 100"] * 2
    assert list(pages[1][2]) == [
        "input",
        "step 100 probability",
        "step 100 visible tokens",
        "motion",
    ]


def test_windows_stack_in_a_sheet_and_speed_can_be_chosen(tmp_path):
    shapes = []
    for count in (1, 2):
        draw(tmp_path / f"{count}.png", windows=count)
        with av.open(str(tmp_path / f"{count}.png")) as container:
            shapes.append(next(container.decode(video=0)).to_ndarray(format="rgb24").shape)
    assert shapes[1][0] == 2 * shapes[0][0] and shapes[1][1] == shapes[0][1]
    assert draw(tmp_path / "film.mp4", laid=layout("title", 4, fps=5)) == 5


def test_a_single_checkpoint_is_a_strip_too(tmp_path, pages):
    draw(tmp_path / "sheet.png", of=stages()[1:])
    assert len(pages[0][2]) == 4
    draw(tmp_path / "film.gif", of=stages()[1:])
    assert (tmp_path / "film.gif").stat().st_size > 0


def test_a_sheet_has_an_end_and_a_film_has_none():
    for name, strips in (("sheet.png", 200), ("film.mp4", 201)):
        refuse_sheet(Path(name), strips)
    with pytest.raises(UsageError, match=r"`sheet\.PNG` cannot hold 201 strips: .* at most 200"):
        refuse_sheet(Path("sheet.PNG"), 201)


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_long_windows_have_so_many_columns(tmp_path, pages, suffix):
    draw(tmp_path / f"out{suffix}", laid=layout("title", 4, columns=1))
    for title, captions, rows in pages:
        assert captions == ["frame 0, 0.00 s"]
        assert "1 of 2 slices: 1" in title
        assert {len(row.panels_TYX3) for row in rows.values()} == {1}
