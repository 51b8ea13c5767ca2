"""The rows: hidden tokens grey, probabilities as colours, vectors as arrows, all labelled."""

import numpy as np
import pytest
import torch

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.arrows import draw_arrows
from tatscli.visualize.panels import SMALLEST_PANEL, heat, zoom_of
from tatscli.visualize.rows import difference_rows, rows_of
from tatscli.visualize.viewer import MaskedWindow
from tests.visualize.fakes import GRID, SIZE, window

ZOOM = SMALLEST_PANEL // SIZE
VISIBLE = [0, 5, 16, 31]


def masked(*, score=None, reconstruction=None, error=None, plan=None) -> MaskedWindow:
    plan = plan or MaskPlan.from_visible(torch.tensor([VISIBLE]), 32)
    return MaskedWindow(plan, score, reconstruction, error)


def rows(seen=None, statistics=False, grid=GRID, **parts):
    found = rows_of(seen or window(), masked(**parts), grid=grid, statistics=statistics)
    return {row.label: row for row in found}


def tokens(panels: np.ndarray, grid: tuple[int, int, int] = GRID) -> np.ndarray:
    """Cut panels into tokens: (N, frames, rows, columns, 3)."""
    t, h, w = grid
    frames, tall, wide = panels.shape[:3]
    cut = panels.reshape(t, frames // t, h, tall // h, w, wide // w, 3)
    return cut.transpose(0, 2, 4, 1, 3, 5, 6).reshape(t * h * w, frames // t, -1, wide // w, 3)


def test_rows_come_in_order_and_only_where_there_is_something_to_show():
    assert list(rows()) == ["input", "visible tokens", "motion"]
    painted = torch.rand(3, 4, SIZE, SIZE)
    full = rows(score=torch.rand(32), reconstruction=painted, error=torch.rand(28))
    assert list(full) == [
        "input",
        "sampler probability",
        "visible tokens",
        "reconstruction",
        "error",
        "motion",
    ]
    assert all(row.notes for label, row in full.items() if label != "input")


def test_small_views_are_enlarged_pixel_by_pixel():
    sizes = (16, 64, 96, 191, 192, 224)
    squares = [torch.empty(1, 3, size, size) for size in sizes]
    assert [zoom_of(video) for video in squares] == [12, 3, 2, 2, 1, 1]
    oblong = [torch.empty(1, 3, 96, 160), torch.empty(1, 3, 160, 96)]
    assert [zoom_of(video) for video in oblong] == [
        2,
        2,
    ]  # labels need the height, captions the width
    seen = window()
    panels = rows(seen)["input"].panels_TYX3
    assert panels.shape == (4, SMALLEST_PANEL, SMALLEST_PANEL, 3)
    assert (
        panels[:, ZOOM - 1 :: ZOOM, ::ZOOM].transpose(0, 3, 1, 2) == seen.video_TCHW.numpy()
    ).all()


def test_exactly_the_hidden_tokens_are_grey():
    found = rows()
    masked, whole = (tokens(found[name].panels_TYX3) for name in ("visible tokens", "input"))
    for token in range(32):
        if token in VISIBLE:
            assert (masked[token] == whole[token]).all()
        else:
            assert set(np.unique(masked[token])) == {104, 128}
    counted, *motion = found["visible tokens"].notes
    assert counted == "grey is hidden: 4 of 32 tokens visible, 28 to predict"
    assert not any("not predicted" in note for note in motion)


def test_hidden_tokens_that_none_predicts_are_darker_and_counted():
    predict = [1, 2, 30]
    found = rows(plan=MaskPlan(torch.tensor([VISIBLE]), torch.tensor([predict])))["visible tokens"]
    cut = tokens(found.panels_TYX3)
    for token in set(range(32)) - set(VISIBLE):
        greys = {104, 128} if token in predict else {40, 64}
        assert set(np.unique(cut[token])) == greys
    assert found.notes[:2] == [
        "grey is hidden: 4 of 32 tokens visible, 3 to predict",
        "dark is hidden and not predicted: 25",
    ]


def test_the_reconstruction_says_where_its_statistics_come_from():
    painted = torch.full((3, 4, SIZE, SIZE), 0.5)
    painted[:, 0, 0, 0] = torch.tensor([-0.2, 0.2, 1.7])
    with_statistics = rows(reconstruction=painted, statistics=True)["reconstruction"]
    assert "mean and contrast of each patch copied from the input" in with_statistics.notes
    assert len(rows(reconstruction=painted)["reconstruction"].notes) == 1
    assert with_statistics.panels_TYX3[0, 0, 0].tolist() == [0, 51, 255]
    assert with_statistics.panels_TYX3[1, 5, 5].tolist() == [128, 128, 128]


def test_differences_share_one_contrast_in_which_grey_stands_still():
    """A tenth of the frame brightens by 0.1, which is then white; half of that is half as far."""
    change, guess = torch.zeros(2, 3, 4, SIZE, SIZE)
    change[:, 1, : SIZE // 10 + 1], guess[:, 1, -1], guess[:, 2, 0] = 0.1, 0.05, -0.4
    true, guessed = difference_rows(change, guess)
    assert [true.label, guessed.label] == ["differences", "predicted differences"]
    assert true.notes[1] == guessed.notes[1] == "contrast x 5.0"
    assert (true.panels_TYX3[0] == 128).all() and (true.panels_TYX3[1, 0] == 255).all()
    assert (guessed.panels_TYX3[1, -1] == 191).all() and (guessed.panels_TYX3[2, 0] == 0).all()


def test_noise_is_not_raised_to_full_contrast():
    change = torch.full((3, 4, SIZE, SIZE), 1 / 255)
    assert difference_rows(change, change)[0].notes[1] == "contrast x 31.9"
    assert difference_rows(0 * change, change)[0].notes[1] == "contrast x 31.9"


def test_probabilities_are_told_as_multiples_of_chance_and_coloured_by_rank():
    score_N = torch.full((32,), 1 / 32)
    score_N[7], score_N[20] = 2 / 32, 0.0
    row = rows(score=score_N)["sampler probability"]
    assert (row.scale.low, row.scale.high) == ("0.00x", "2.00x")
    bright = tokens(row.panels_TYX3).mean(axis=(1, 2, 3, 4)) - 0.3 * tokens(
        rows()["input"].panels_TYX3
    ).mean(axis=(1, 2, 3, 4))
    assert bright.argmax() == 7 and bright.argmin() == 20


def test_a_uniform_policy_shows_one_colour_not_noise():
    row = rows(score=torch.full((32,), 1 / 32) * (1 + 1e-6 * torch.randn(32)))[
        "sampler probability"
    ]
    assert (row.scale.low, row.scale.high) == ("0.95x", "1.05x")
    tint = row.panels_TYX3 - 0.3 * rows()["input"].panels_TYX3.mean(axis=-1, keepdims=True)
    assert (np.ptp(tint, axis=(0, 1, 2)) <= 2).all()


def test_the_colour_scale_grows_brighter_all_the_way():
    luma = heat(np.linspace(0, 1, 50), over=np.zeros(50)) @ (0.3, 0.6, 0.1)
    assert (np.diff(luma) > 0).all()


def test_the_error_of_each_predicted_token_is_a_colour_and_the_others_have_none():
    predict = [1, 2, 3, 30]
    plan = MaskPlan(torch.tensor([VISIBLE]), torch.tensor([predict]))
    row = rows(error=torch.tensor([0.5, 0.25, 2.0, 1.25]), plan=plan)["error"]
    assert (row.scale.low, row.scale.high) == ("0.250", "2.00")
    assert "mean 1.00" in row.notes
    cut = tokens(row.panels_TYX3).astype(int)
    colourful = np.ptp(cut, axis=-1).max(axis=(1, 2, 3)) > 0
    assert np.flatnonzero(colourful).tolist() == predict
    grey = tokens(rows()["input"].panels_TYX3).mean(axis=-1)
    bright = [cut[token].mean() - 0.3 * grey[token].mean() for token in predict]
    assert np.argsort(bright).tolist() == [1, 0, 3, 2]
    for token in range(32):
        if token in VISIBLE:
            assert np.allclose(cut[token, ..., 0], 0.55 * grey[token], atol=1)
        elif token not in predict:
            assert set(np.unique(cut[token])) == {104, 128}


def test_a_model_without_error_has_a_scale_all_the_same():
    row = rows(error=torch.zeros(28))["error"]
    assert row.scale.low == "0.00" and "mean 0.00" in row.notes


def test_labels_tell_entropy_and_motion():
    found = rows(score=torch.full((32,), 1 / 32))
    assert "entropy 1.000, uniform 1" in found["sampler probability"].notes
    # Token 5 moves and is seen, token 21 moves and is not: half of 0.125 x 32 pixels on 4 tokens.
    assert "motion of visible tokens 4.00 x chance" in found["visible tokens"].notes
    assert "motion of hidden tokens 0.57 x chance" in found["visible tokens"].notes
    still = window()
    still.motion.missing_B[:] = True
    assert "no motion to compare with" in rows(still)["visible tokens"].notes


@pytest.mark.parametrize("grid", [(2, 3, 6), (2, 6, 3)])
def test_every_row_of_an_oblong_view_shows_its_tokens_where_they_are(grid):
    seen, visible, bright = window(grid=grid), [0, 4, 19], 10
    plan = MaskPlan.from_visible(torch.tensor([visible]), 36)
    hidden = [token for token in range(36) if token not in visible]
    score, error = torch.ones(36), torch.ones(33)
    score[bright], error[hidden.index(bright)] = 3, 3
    made = masked(score=score / score.sum(), error=error, plan=plan)
    found = {row.label: row for row in rows_of(seen, made, grid=grid, statistics=False)}
    side = 64  # of a token: 8 pixels of the view, 8 times
    cut = {label: tokens(row.panels_TYX3, grid).astype(int) for label, row in found.items()}
    shapes = {row.panels_TYX3.shape for row in found.values()}
    assert shapes == {(4, side * grid[1], side * grid[2], 3)}
    for token in range(36):
        greys = set(np.unique(cut["visible tokens"][token]))
        assert (greys == {104, 128}) == (token in hidden)
    grey = cut["input"].mean(axis=(1, 2, 3, 4))
    for label in ("sampler probability", "error"):
        heat_N = cut[label].mean(axis=(1, 2, 3, 4)) - 0.3 * grey
        assert heat_N[hidden].argmax() == hidden.index(bright)
    moving = yellow(found["motion"].panels_TYX3[1])
    y, x = np.nonzero(moving)
    assert abs(y.mean() - 1.5 * side) < 2 and x.max() == pytest.approx(1.5 * side, abs=2)


def test_words_stand_in_the_middle_of_an_oblong_panel():
    plan = MaskPlan.from_visible(torch.tensor([VISIBLE]), 36)
    for grid in ((2, 3, 6), (2, 6, 3)):
        panel = rows(window(held=1, grid=grid), grid=grid, plan=plan)["motion"].panels_TYX3[3]
        places = np.argwhere((panel == 220).all(axis=-1))
        middle = (places.min(axis=0) + places.max(axis=0)) / 2
        assert np.abs(middle - np.array(panel.shape[:2]) / 2).max() <= 8


def yellow(panel: np.ndarray) -> np.ndarray:
    return (panel[..., 0].astype(int) - panel[..., 2]) > 100


def pale(panel: np.ndarray) -> np.ndarray:
    return (panel[..., 1] > 200) & ~yellow(panel)


def test_arrows_lead_to_where_the_motion_is():
    side = SMALLEST_PANEL // 4
    for panel in rows()["motion"].panels_TYX3[1:]:
        y, x = np.nonzero(yellow(panel))
        assert abs(y.mean() - 1.5 * side) < 2
        assert x.max() == pytest.approx(1.5 * side, abs=2)  # 2 pixels to the right, no more
        assert x.min() == pytest.approx(1.5 * side - 2 * ZOOM, abs=2)


def test_borrowed_vectors_are_paler_and_a_note_says_so():
    row = rows()["motion"]
    assert pale(row.panels_TYX3[0]).any() and not yellow(row.panels_TYX3[0]).any()
    assert not any(pale(panel).any() for panel in row.panels_TYX3[1:])
    assert any("neighbouring frame" in note for note in row.notes)
    own = window()
    own.motion.valid_BT[:] = True
    row = rows(own)["motion"]
    assert yellow(row.panels_TYX3[0]).any()
    assert not any("neighbouring frame" in note for note in row.notes)


def test_the_note_about_pale_arrows_stands_where_one_is_seen():
    def noted(seen, every):
        found = rows_of(seen, masked(), grid=GRID, statistics=False, shown=range(0, 4, every))[-1]
        return any("neighbouring frame" in note for note in found.notes)

    third = window()
    third.motion.valid_BT[:] = torch.tensor([[True, True, True, False]])
    assert noted(window(), 2) and noted(third, 1) and noted(third, 3)
    assert not noted(third, 2)  # frames 0 and 2 are shown, the last is not
    short = window()
    short.motion.field_BThw2.mul_(1.4 / ZOOM / 2)  # below 1.5 pixels of the panel
    assert not noted(short, 1)
    assert not pale(rows(short)["motion"].panels_TYX3[0]).any()


def test_frames_without_vectors_say_so():
    blank = window()
    blank.motion.field_BThw2[:, 0] = 0
    panel = rows(blank)["motion"].panels_TYX3[0]
    assert not yellow(panel).any() and (panel == 220).all(axis=-1).any()  # the words


def test_a_repeated_frame_is_said_to_be_held():
    held, other = (rows(window(held=held))["motion"].panels_TYX3[3] for held in (1, 0))
    blank = window()
    blank.motion.field_BThw2[:, 0] = 0
    nothing = rows(blank)["motion"].panels_TYX3[0]
    words = [(panel == 220).all(axis=-1) for panel in (held, nothing)]
    assert words[0].any() and not yellow(held).any() and yellow(other).any()
    assert (words[0] != words[1]).any()


def test_motion_without_direction_is_a_heat_map():
    changing = window()
    changing.motion.field_BThw2.zero_()
    changing.motion.speed_BThw.zero_()
    changing.motion.speed_BThw[0, 2, 3, 1] = 40.0
    changing.motion.speed_BThw[0, 2, 0, 0] = 20.0
    row = rows(changing)["motion"]
    assert (row.scale.low, row.scale.high) == ("0", "40")
    assert "no direction" in row.notes[0]
    side = SMALLEST_PANEL // 4
    grey = rows()["input"].panels_TYX3.mean(axis=-1)
    tint = row.panels_TYX3.mean(axis=-1) - 0.3 * grey
    cell = tint.reshape(4, 4, side, 4, side).mean(axis=(2, 4))
    assert np.unravel_index(cell.argmax(), cell.shape) == (2, 3, 1)
    assert np.argsort(cell.ravel())[-2] == np.ravel_multi_index((2, 0, 0), cell.shape)


def test_stillness_is_no_heat_map():
    still = window()
    still.motion.field_BThw2.zero_()
    still.motion.speed_BThw.zero_()
    assert rows(still)["motion"].scale is None


def test_the_outline_runs_between_hidden_and_visible_tokens_and_nowhere_else():
    plan = MaskPlan.from_hidden(torch.arange(32)[None] % 16 > 7, 16)  # the lower half is hidden
    bare, lined = (
        rows_of(window(), masked(plan=plan), grid=GRID, statistics=False, outlined=outlined)[-1]
        for outlined in (False, True)
    )
    assert len(lined.notes) == len(bare.notes) + 1
    changed = (bare.panels_TYX3 != lined.panels_TYX3).any(axis=-1)
    border = np.zeros_like(changed)
    border[:, SMALLEST_PANEL // 2 : SMALLEST_PANEL // 2 + 2] = True
    assert (changed == border).all()


@pytest.mark.parametrize("step", [(3, 0), (-3, 0), (0, 3), (0, -3), (2, -2)])
def test_an_arrow_comes_from_where_its_content_was(step):
    """It ends in the token's middle, is as long as the way, and has more ink at the head."""
    picture = np.zeros((90, 90, 3), np.uint8)
    motion = np.zeros((3, 3, 2), np.float32)
    motion[1, 1] = step
    draw_arrows(picture, motion, zoom=8, colour=(255, 255, 255))
    y, x = np.nonzero(picture[..., 0] > 128)
    along = (np.stack([x, y], axis=1) - 45) @ (np.array(step) / np.hypot(*step))
    length = 8 * np.hypot(*step)
    assert along.min() == pytest.approx(-length, abs=2) and along.max() < 3
    assert (along > -0.4 * length).sum() > (along < -0.6 * length).sum()


def test_arrows_are_cut_to_the_picture_and_stillness_draws_none():
    picture = np.full((30, 30, 3), 50, np.uint8)
    draw_arrows(picture, np.full((3, 3, 2), 0.1), zoom=1, colour=(255, 255, 255))
    assert (picture == 50).all()
    draw_arrows(picture, np.full((3, 3, 2), 99.0), zoom=1, colour=(255, 255, 255))
    assert (picture == 255).any()


def test_long_arrows_are_cut_as_the_label_says():
    picture = np.zeros((10, 200, 3), np.uint8)
    motion = np.zeros((1, 20, 2), np.float32)
    motion[0, 15, 0] = 99.0
    draw_arrows(picture, motion, zoom=1, colour=(255, 255, 255))
    x = np.nonzero(picture[..., 0] > 128)[1]
    assert (x.min(), x.max()) == (pytest.approx(155 - 30, abs=2), pytest.approx(155, abs=2))
    assert any("up to 3 tokens" in note for note in rows()["motion"].notes)


def test_no_arrow_cuts_another_short():
    """Arrows over three tokens each, in a row: their shafts are one line from end to end."""
    picture = np.full((30, 300, 3), 90, np.uint8)
    motion = np.zeros((1, 10, 2), np.float32)
    motion[0, 3:, 0] = 90.0
    draw_arrows(picture, motion, zoom=1, colour=(255, 255, 255))
    assert (picture[14:17, 20:284].max(axis=(0, 2)) > 200).all()
    assert (picture[8:22, 100:200].min(axis=(0, 2)) < 85).all()  # a rim along it
