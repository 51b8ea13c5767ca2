"""What is shown of a window: reproducible plans, probabilities, and reconstructions put right."""

from dataclasses import replace

import pytest
import torch

from tatscli.masking.selection import build_selection
from tatscli.recipe.schema import (
    PredictEverest,
    PredictFlow,
    PredictRandom,
    RandomMask,
    TatsMask,
    TubeMask,
)
from tatscli.visualize.sight import Viewer
from tests.visualize.fakes import GRID, MEAN, PATCH, STD, TUBELET, viewer, window

RANDOM = RandomMask(kind="random", ratio=0.75)
MASKS = [RANDOM, TubeMask(kind="tube"), TatsMask(kind="tats", width=16, heads=2)]


def look(viewer: Viewer, seen=None, seed=0):
    return viewer.look(seen or window(), torch.Generator().manual_seed(seed))


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
    sight = look(viewer(RANDOM))
    assert sight.reconstruction_CTHW is None and sight.error_M is None


@pytest.mark.parametrize("normalize", [True, False])
def test_a_perfect_prediction_gives_the_video_back(normalize):
    seen = window()
    sight = look(viewer(RANDOM, seen=seen, normalize=normalize), seen)
    expected = seen.video_TCHW.transpose(0, 1).float() / 255
    assert torch.allclose(sight.reconstruction_CTHW, expected, atol=1e-5)


@pytest.mark.parametrize(("normalize", "constant"), [(True, 0.0), (False, 0.25)])
def test_hidden_tokens_show_the_prediction_and_visible_ones_the_input(normalize, constant):
    """Zero of a standardised cube is the cube's own mean; a raw value is itself."""
    seen = window()
    sight = look(viewer(RANDOM, seen=seen, normalize=normalize, constant=constant), seen)
    unit_CTHW = seen.video_TCHW.transpose(0, 1).float() / 255
    visible = set(sight.plan.visible_BK[0].tolist())
    for token in range(32):
        t, rest = divmod(token, GRID[1] * GRID[2])
        row, column = divmod(rest, GRID[2])
        box = (
            slice(None),
            slice(t * TUBELET, (t + 1) * TUBELET),
            slice(row * PATCH, (row + 1) * PATCH),
            slice(column * PATCH, (column + 1) * PATCH),
        )
        cube = unit_CTHW[box]
        mean = cube.mean(dim=(1, 2, 3), keepdim=True).expand_as(cube)
        guess = mean if normalize else torch.full_like(cube, constant)
        expected = cube if token in visible else guess
        assert torch.allclose(sight.reconstruction_CTHW[box], expected, atol=1e-5)


def test_the_error_is_that_of_the_predicted_tokens_as_the_loss_counts_it():
    """Against zero, a cube standardised with the unbiased deviation errs by (P - 1) / P."""
    seen = window()
    perfect = look(viewer(RANDOM, seen=seen), seen)
    assert perfect.error_M.shape == perfect.plan.predict_BM[0].shape
    assert torch.equal(perfect.error_M, torch.zeros(24))
    pixels = TUBELET * PATCH * PATCH
    blind = viewer(RANDOM, seen=seen, constant=0.0)
    error_M = look(blind, seen).error_M
    assert torch.allclose(error_M, torch.full((24,), (pixels - 1) / pixels), atol=1e-4)
    blind.targets[0].weight = 0.5
    assert torch.allclose(look(blind, seen).error_M, error_M / 2)


def test_the_error_sits_on_its_own_token():
    seen = window()
    target = seen.video_TCHW.transpose(0, 1).float() / 255
    sight = look(viewer(RANDOM, seen=seen, normalize=False, constant=0.25), seen)
    for error, token in zip(sight.error_M, sight.plan.predict_BM[0].tolist(), strict=True):
        t, row, column = token // 16, token // 4 % 4, token % 4
        cube = target[:, 2 * t : 2 * t + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert error.item() == pytest.approx((cube - 0.25).square().mean().item(), rel=1e-4)


def test_a_selection_leaves_the_visible_tokens_and_takes_from_the_others():
    seen = window()
    plain = viewer(RANDOM, seen=seen)
    chosen = replace(
        plain,
        selection=build_selection(
            PredictRandom(kind="random", budget=5), grid=GRID, predicted=plain.masker.predicted
        ),
    )
    before, after = look(plain, seen), look(chosen, seen)
    assert torch.equal(before.plan.visible_BK, after.plan.visible_BK)
    assert set(after.plan.predict_BM[0].tolist()) < set(before.plan.predict_BM[0].tolist())
    assert after.error_M.shape == (5,)


@pytest.mark.parametrize("kind", ["flow", "everest"])
def test_a_selection_gets_what_it_reads(kind):
    """The mask reads neither motion nor embeddings; tokens 5 and 21 are all that moves."""
    section = {"flow": PredictFlow, "everest": PredictEverest}[kind](kind=kind, budget=4, random=0)
    plain = viewer(RANDOM)
    selection = build_selection(section, grid=GRID, predicted=plain.masker.predicted)
    one = replace(plain, selection=selection)
    assert (one.needs_motion, one.needs_embeddings) == (kind == "flow", kind == "everest")
    plan = look(one).plan
    assert plan.predict_BM.shape == (1, 4)
    if kind == "flow":
        hidden = {5, 21} - set(plan.visible_BK[0].tolist())
        assert hidden and hidden <= set(plan.predict_BM[0].tolist())


def test_the_model_sees_standardised_colours():
    seen = window()
    one = viewer(RANDOM, seen=seen)
    look(one, seen)
    unit_TCHW = seen.video_TCHW.float() / 255
    first = (unit_TCHW[:2, :, :PATCH, :PATCH] - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(
        STD
    ).view(3, 1, 1)
    given = one.autoencoder.given_BNP[0, 0].reshape(3, TUBELET, PATCH, PATCH)
    assert torch.allclose(given, first.transpose(0, 1), atol=1e-6)
