"""Files: a film of all windows, a sheet of the first, made again alike from the same seed."""

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tatscli.recipe.schema import MgmMask, RandomMask
from tatscli.visualize import render as module
from tatscli.visualize.render import render, slices_shown
from tatscli.visualize.viewer import Viewer
from tests.clips import pan
from tests.clips import render as film
from tests.visualize.fakes import layout, viewer

LAYOUT = layout("random mask, ratio 0.75", 2)


@pytest.fixture
def clip(tmp_path):
    return film(tmp_path / "clip.mp4", pan(frames=20, height=48, width=80), fps=10)


@pytest.fixture
def random_viewer() -> Viewer:
    return viewer(RandomMask(kind="random", ratio=0.75))


def frames_of(path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], rate


def draw(clip, out, viewer, made=LAYOUT, seed=0):
    seen = []
    rate = render(clip, out, viewer, made, seed=seed, watch=lambda *both: seen.append(both))
    return seen, rate


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_shows_every_frame_of_every_window(clip, tmp_path, random_viewer, suffix):
    out = tmp_path / f"out{suffix}"
    seen, rate = draw(clip, out, random_viewer)
    pictures, written = frames_of(out)
    assert [window.frames for window, _ in seen] == [
        [0, 2, 4, 6],
        [8, 10, 12, 14],
        [12, 14, 16, 18],
    ]
    assert len(pictures) == 12
    assert rate == pytest.approx(5) == pytest.approx(written)  # every second of 10 a second


def test_limits_and_speed_can_be_chosen(clip, tmp_path, random_viewer):
    made = layout("title", 2, fps=3, windows=1)
    seen, rate = draw(clip, tmp_path / "one.mp4", random_viewer, made)
    pictures, written = frames_of(tmp_path / "one.mp4")
    assert len(seen) == 1 and len(pictures) == 4 and rate == 3 == written


def test_a_png_is_a_sheet_with_one_column_a_slice(clip, tmp_path, random_viewer):
    seen, rate = draw(clip, tmp_path / "sheet.png", random_viewer)
    two, _ = draw(clip, tmp_path / "two.png", random_viewer, layout("title", 2, windows=2))
    (one,), _ = frames_of(tmp_path / "sheet.png")
    (double,), _ = frames_of(tmp_path / "two.png")
    assert len(seen) == 1 and len(two) == 2 and rate is None
    assert double.shape == (2 * one.shape[0], *one.shape[1:])
    draw(clip, tmp_path / "film.mp4", random_viewer)
    narrow = frames_of(tmp_path / "film.mp4")[0][0]
    assert one.shape[0] == narrow.shape[0] and 192 <= one.shape[1] - narrow.shape[1] < 200


def test_only_a_mask_that_follows_motion_is_outlined_in_it(clip, tmp_path, random_viewer):
    follows = viewer(MgmMask(kind="mgm"))
    for name, one, outlined in (("mgm", follows, True), ("random", random_viewer, False)):
        draw(clip, tmp_path / f"{name}.png", one)
        (picture,), _ = frames_of(tmp_path / f"{name}.png")
        blue = (picture == (90, 220, 255)).all(axis=-1)
        assert blue.any() == outlined
        assert not blue[: len(blue) // 2].any()  # motion is the last of three rows


def test_a_sheet_has_no_note_about_frames_it_leaves_out(clip, tmp_path, monkeypatch):
    """A film shows the arrows that a sheet of slices of two frames does not."""
    told = {}

    def spy(*args, **more):
        told[out.suffix] = (found := rows_of(*args, **more))[-1].notes
        return found

    rows_of = module.rows_of
    monkeypatch.setattr(module, "rows_of", spy)
    windows_of = module.windows_of

    def second_borrows(*args):
        for window in windows_of(*args):
            window.motion.valid_BT[:] = torch.tensor([[True, False, True, True]])
            yield window

    monkeypatch.setattr(module, "windows_of", second_borrows)
    for out in (tmp_path / "film.mp4", tmp_path / "sheet.png"):
        draw(clip, out, viewer(RandomMask(kind="random")), layout("title", 2, windows=1))
    assert any("pale" in note for note in told[".mp4"])
    assert not any("pale" in note for note in told[".png"])


def test_the_same_seed_draws_the_same_file(clip, tmp_path, random_viewer):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # the global generator has no say
        draw(clip, tmp_path / f"{name}.png", random_viewer, seed=seed)
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_slow_and_odd_rates_stay_watchable(tmp_path, random_viewer):
    for fps, expected in ((1, 1.0), (120, 30.0)):
        path = film(tmp_path / f"{fps}.mp4", pan(frames=8, height=32, width=32), fps=fps)
        _, rate = draw(path, tmp_path / f"out{fps}.mp4", random_viewer)
        assert rate == pytest.approx(expected)


@given(slices=st.integers(1, 300), columns=st.integers(1, 40))
def test_columns_lie_evenly_from_the_first_slice_to_the_last(slices, columns):
    shown = slices_shown(slices, columns)
    assert len(shown) == min(slices, columns) and shown[0] == 0
    if columns > 1:
        assert shown[-1] == slices - 1
    gaps = np.diff(shown)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_a_sheet_of_a_long_window_has_so_many_columns_and_says_which(clip, tmp_path, monkeypatch):
    given_to = []

    def spy(title, captions, rows, columns):
        given_to.append((title, captions, list(columns)))
        return compose(title, captions, rows, columns)

    compose = module.compose
    monkeypatch.setattr(module, "compose", spy)
    long = viewer(RandomMask(kind="random"), frames=20)  # 10 slices of 2 frames
    for columns in (3, 10):
        made = layout("title", 1, frames=20, columns=columns)
        draw(clip, tmp_path / f"{columns}.png", long, made)
    (few, captions, places), (all_of_them, _, every) = given_to
    assert places == [0, 10, 18] and every == list(range(0, 20, 2))
    assert captions == ["frame 0, 0.00 s", "frame 10, 1.00 s", "frame 18, 1.80 s"]
    assert "3 of 10 slices: 1, 6, 10" in few
    assert not any("slices" in line for line in all_of_them)
    (three,), _ = frames_of(tmp_path / "3.png")
    (ten,), _ = frames_of(tmp_path / "10.png")
    assert ten.shape[1] - three.shape[1] == 7 * (192 + 4)
    draw(clip, tmp_path / "film.gif", long, layout("title", 1, frames=20, columns=3))
    assert len(frames_of(tmp_path / "film.gif")[0]) == 20
