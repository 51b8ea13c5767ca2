"""What is shown of a window: reproducible plans, probabilities, and reconstructions put right."""

from dataclasses import replace

import pytest
import torch

from tatscli.draws import Draws
from tatscli.masking.predict import build_predict
from tatscli.recipe.schema import (
    DifferenceTarget,
    PixelTarget,
    Predict,
    PredictEverest,
    PredictFlow,
    PredictRandom,
    RandomMask,
    TatsMask,
    TubeMask,
)
from tatscli.visualize.viewer import Viewer
from tests.visualize.fakes import GRID, MEAN, PATCH, STD, TUBELET, viewer, window

RANDOM = RandomMask(kind="random", ratio=0.75)
MASKS = [RANDOM, TubeMask(kind="tube"), TatsMask(kind="tats", width=16, heads=2)]


def look(viewer: Viewer, seen=None, seed=0):
    return viewer.mask(seen or window(), Draws(seed))


def selecting(plain: Viewer, section: Predict) -> Viewer:
    """The same viewer with another selection."""
    predicted = plain.system.masker.predicted
    selection = build_predict(section, form=plain.system.form, predicted=predicted)
    return replace(plain, system=replace(plain.system, predict=selection))


def box_of(token: int) -> tuple[slice, ...]:
    """Where a token lies in a video (C, T, H, W)."""
    t, rest = divmod(token, GRID[1] * GRID[2])
    row, column = divmod(rest, GRID[2])
    return (
        slice(None),
        slice(t * TUBELET, (t + 1) * TUBELET),
        slice(row * PATCH, (row + 1) * PATCH),
        slice(column * PATCH, (column + 1) * PATCH),
    )


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask.kind)
def test_a_seed_gives_one_plan_and_another_seed_another(mask):
    one = viewer(mask)
    visible = [look(one, seed=seed).plan.visible_BK.tolist() for seed in (0, 0, 1)]
    assert visible[0] == visible[1] != visible[2]


def test_only_a_learned_mask_has_probabilities():
    assert look(viewer(RANDOM)).score_N is None
    score_N = look(viewer(MASKS[2])).score_N
    assert score_N.shape == (32,)
    assert torch.allclose(score_N, torch.full((32,), 1 / 32))


def test_without_a_model_nothing_is_reconstructed():
    masked = look(viewer(RANDOM))
    assert masked.reconstruction_CTHW is None and masked.error_M is None


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_gives_the_video_back(normalize):
    seen = window()
    masked = look(viewer(RANDOM, oracle=True, normalize=normalize), seen)
    expected = seen.video_TCHW.transpose(0, 1).float() / 255
    assert torch.allclose(masked.reconstruction_CTHW, expected, atol=1e-5)


@pytest.mark.parametrize(("normalize", "constant"), [(True, 0.0), (False, 0.25)])
def test_hidden_tokens_show_the_prediction_and_visible_ones_the_input(normalize, constant):
    """Zero of a standardised cube is the cube's own mean; a raw value is itself."""
    seen = window()
    masked = look(viewer(RANDOM, oracle=True, normalize=normalize, constant=constant), seen)
    unit_CTHW = seen.video_TCHW.transpose(0, 1).float() / 255
    visible = set(masked.plan.visible_BK[0].tolist())
    for token in range(32):
        box = box_of(token)
        cube = unit_CTHW[box]
        mean = cube.mean(dim=(1, 2, 3), keepdim=True).expand_as(cube)
        guess = mean if normalize else torch.full_like(cube, constant)
        expected = cube if token in visible else guess
        assert torch.allclose(masked.reconstruction_CTHW[box], expected, atol=1e-5)


def test_the_error_is_that_of_the_predicted_tokens_as_the_loss_counts_it():
    """Against zero, a cube standardised with the unbiased deviation errs by (P - 1) / P."""
    seen = window()
    perfect = look(viewer(RANDOM, oracle=True), seen)
    assert perfect.error_M.shape == perfect.plan.predict_BM[0].shape
    assert torch.equal(perfect.error_M, torch.zeros(24))
    pixels = TUBELET * PATCH * PATCH
    error_M = look(viewer(RANDOM, oracle=True, constant=0.0), seen).error_M
    assert torch.allclose(error_M, torch.full((24,), (pixels - 1) / pixels), atol=1e-4)
    both = [PixelTarget(kind="pixels", weight=weight) for weight in (0.5, 2.0)]
    weighed = look(viewer(RANDOM, oracle=True, constant=0.0, targets=both), seen)
    assert torch.allclose(weighed.error_M, error_M * 2.5)


def test_the_error_sits_on_its_own_token():
    seen = window()
    target = seen.video_TCHW.transpose(0, 1).float() / 255
    masked = look(viewer(RANDOM, oracle=True, normalize=False, constant=0.25), seen)
    for error, token in zip(masked.error_M, masked.plan.predict_BM[0].tolist(), strict=True):
        cube = target[box_of(token)]
        assert error.item() == pytest.approx((cube - 0.25).square().mean().item(), rel=1e-4)


def test_pixels_are_shown_wherever_they_stand_among_the_targets():
    difference, pixels = DifferenceTarget(kind="difference"), PixelTarget(kind="pixels")
    both = Viewer(viewer(RANDOM, targets=[difference, pixels]).system, trained=True)
    assert both.pixel_target == "pixels"
    assert look(both).reconstruction_CTHW.shape == (3, 4, 32, 32)
    neither = Viewer(viewer(RANDOM, targets=[difference]).system, trained=True)
    assert neither.pixel_target is None
    masked = look(neither)
    assert masked.reconstruction_CTHW is None and masked.error_M.shape == (24,)
    assert viewer(RANDOM).pixel_target is None  # nothing of an untrained system is shown


def changes_of(video_TCHW: torch.Tensor, gap: int, *, span: str) -> torch.Tensor:
    """What each frame differs by from the one `gap` later, frame by frame: (C, T, H, W)."""
    unit_TCHW = video_TCHW.float() / 255
    change_TCHW = torch.zeros_like(unit_TCHW)
    for frame in range(len(unit_TCHW)):
        start = frame
        if span == "cube":  # the last frames of a cube repeat its last pair
            start = min(frame, frame // TUBELET * TUBELET + TUBELET - 1 - gap)
        if start + gap < len(unit_TCHW):
            change_TCHW[frame] = unit_TCHW[start + gap] - unit_TCHW[start]
    return change_TCHW.transpose(0, 1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("span", "gaps"), [("cube", [1]), ("clip", [1]), ("clip", [2, 1])])
def test_differences_are_shown_as_they_are_and_as_they_are_predicted(span, gaps, normalize):
    seen = window()
    target = DifferenceTarget(kind="difference", span=span, gaps=gaps, normalize=normalize)
    perfect = look(viewer(RANDOM, oracle=True, targets=[target]), seen)
    expected = changes_of(seen.video_TCHW, gaps[0], span=span)
    assert expected.abs().max() > 0.5 and perfect.reconstruction_CTHW is None
    assert torch.allclose(perfect.change_CTHW, expected, atol=1e-5)
    assert torch.allclose(perfect.guessed_change_CTHW, expected, atol=1e-5)

    wrong = look(viewer(RANDOM, oracle=True, constant=0.25, targets=[target]), seen)
    assert torch.equal(wrong.change_CTHW, perfect.change_CTHW)
    for token in range(32):
        shown, true = wrong.guessed_change_CTHW[box_of(token)], expected[box_of(token)]
        last = (true == 0).all(dim=(0, 2, 3))  # frames without a later one
        assert (shown[:, last] == 0).all()
        if token in wrong.plan.visible_BK[0].tolist():
            assert torch.allclose(shown, true, atol=1e-5)
        elif not normalize:
            assert (shown[:, ~last] == 0.25).all()
        elif not last.all():
            assert (shown - true).abs().max() > 0.1


def test_a_selection_leaves_the_visible_tokens_and_takes_from_the_others():
    seen = window()
    plain = viewer(RANDOM, oracle=True)
    chosen = selecting(plain, PredictRandom(kind="random", budget=5))
    before, after = look(plain, seen), look(chosen, seen)
    assert torch.equal(before.plan.visible_BK, after.plan.visible_BK)
    assert set(after.plan.predict_BM[0].tolist()) < set(before.plan.predict_BM[0].tolist())
    assert after.error_M.shape == (5,)
    # What is neither seen nor predicted stays grey.
    left = set(before.plan.predict_BM[0].tolist()) - set(after.plan.predict_BM[0].tolist())
    whole = seen.video_TCHW.transpose(0, 1).float() / 255
    for token in range(32):
        expected = torch.tensor(0.5) if token in left else whole[box_of(token)]
        assert torch.allclose(after.reconstruction_CTHW[box_of(token)], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["flow", "everest"])
def test_a_selection_gets_what_it_reads(kind):
    """The mask reads neither motion nor embeddings; tokens 5 and 21 are all that moves."""
    section = {"flow": PredictFlow, "everest": PredictEverest}[kind](kind=kind, budget=4, random=0)
    one = selecting(viewer(RANDOM), section)
    system = one.system
    assert (system.follows_motion, system.needs_embeddings) == (kind == "flow", kind == "everest")
    plan = look(one).plan
    assert plan.predict_BM.shape == (1, 4)
    if kind == "flow":
        hidden = {5, 21} - set(plan.visible_BK[0].tolist())
        assert hidden and hidden <= set(plan.predict_BM[0].tolist())


def test_the_model_sees_standardised_colours_of_the_visible_tokens():
    seen = window()
    one = Viewer(viewer(RANDOM).system, trained=True)
    given = []
    embed = one.system.encoder.patch_embed
    embed.register_forward_hook(lambda _, inputs, output: given.append(*inputs))
    masked = look(one, seen)
    (cubes_BKP,) = given
    assert masked.reconstruction_CTHW is not None
    unit_CTHW = seen.video_TCHW.transpose(0, 1).float() / 255
    mean, std = (torch.tensor(colours).view(3, 1, 1, 1) for colours in (MEAN, STD))
    visible = masked.plan.visible_BK[0].tolist()
    for values_P, token in zip(cubes_BKP[0], visible, strict=True):
        cube = (unit_CTHW[box_of(token)] - mean) / std
        expected = cube.permute(1, 2, 3, 0).flatten()  # frame, row, column, colour
        assert torch.allclose(values_P, expected, atol=1e-6)
