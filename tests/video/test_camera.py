"""Global motion is taken out, and what moves on its own is left."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.video.camera import remove_camera

SHAPE = (12, 18)


def plane(parameters):
    """An affine motion over the grid: three numbers for x, three for y."""
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    a, b, c, d, e, f = parameters
    return np.stack([a + b * x + c * y, d + e * x + f * y], -1)


def with_object(field, motion=(6.0, -5.0), rows=slice(3, 8), columns=slice(5, 11)):
    field = field.copy()
    field[rows, columns] += motion
    inside = np.zeros(SHAPE, bool)
    inside[rows, columns] = True
    return field, inside


EVERYWHERE = np.ones(SHAPE, bool)


def test_a_pan_goes_and_the_object_stays():
    field, inside = with_object(plane((3, 0, 0, -2, 0, 0)))
    for model in ("median", "affine"):
        left = remove_camera(field, EVERYWHERE, model)
        np.testing.assert_allclose(
            left[inside], np.broadcast_to((6, -5), left[inside].shape), atol=0.01
        )
        np.testing.assert_allclose(left[~inside], 0, atol=0.01)


@given(st.tuples(*[st.floats(-8, 8)] * 6))
def test_zoom_roll_and_pan_go_together(parameters):
    field, inside = with_object(plane(parameters), motion=(9.0, 9.0))
    left = remove_camera(field, EVERYWHERE, "affine")
    np.testing.assert_allclose(left[~inside], 0, atol=0.05)
    np.testing.assert_allclose(left[inside], 9, atol=0.05)


def test_a_zoom_is_too_much_for_the_median():
    field = plane((0, 5, 0, 0, 0, 5))
    assert np.abs(remove_camera(field, EVERYWHERE, "median")).max() > 4
    assert np.abs(remove_camera(field, EVERYWHERE, "affine")).max() < 0.01


def test_noise_is_averaged_out():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, (*SHAPE, 2))
    left = remove_camera(plane((2, 1, 0, 1, 0, -1)) + noise, EVERYWHERE, "affine")
    assert np.abs(left - noise).max() < 0.2


@pytest.mark.parametrize("model", ["median", "affine"])
def test_unknown_cells_stay_zero_and_count_for_nothing(model):
    covered = np.zeros(SHAPE, bool)
    covered[:, :12] = True
    field = np.where(covered[..., None], plane((3, 0, 0, 1, 0, 0)), 0)
    left = remove_camera(field, covered, model)
    assert left.dtype == np.float32
    np.testing.assert_allclose(left, 0, atol=1e-3)


@pytest.mark.parametrize("model", ["none", "median", "affine"])
def test_nothing_known(model):
    still = np.zeros((*SHAPE, 2), np.float32)
    assert not remove_camera(still, np.zeros(SHAPE, bool), model).any()


def test_a_few_cells_fall_back_to_the_median():
    covered = np.zeros(SHAPE, bool)
    covered[0, :4] = True
    left = remove_camera(plane((3, 0, 0, 1, 0, 0)), covered, "affine")
    assert not left.any()


@pytest.mark.parametrize("model", ["median", "affine"])
def test_many_frames_at_once_are_each_their_own(model):
    rng = np.random.default_rng(0)
    fields = np.stack([with_object(plane(rng.uniform(-5, 5, 6)))[0] for _ in range(6)])
    fields = fields.reshape(2, 3, *fields.shape[1:])
    covered = rng.random(fields.shape[:-1]) < 0.8
    covered[0, 0], covered[1, 2] = False, False
    covered[0, 1, 3, :4] = True
    fields[~covered] = 0
    together = remove_camera(fields, covered, model)
    assert together.shape == fields.shape
    for index in np.ndindex(2, 3):
        alone = remove_camera(fields[index], covered[index], model)
        np.testing.assert_allclose(together[index], alone, atol=1e-5)
    assert not together[0, 0].any()


@pytest.mark.parametrize("model", ["median", "affine"])
def test_where_the_holes_are_forgotten_zeros_count_and_stay(model):
    field = plane((3, 0, 0, 1, 0, 0))
    holes = np.zeros(SHAPE, bool)
    holes[2:4, 3:9] = True
    left = remove_camera(np.where(holes[..., None], 0, field), None, model)
    np.testing.assert_allclose(left, 0, atol=1e-3)
    assert (left[holes] == 0).all()
    # Before a camera at rest the ground has no vectors at all, and what moves is not the camera.
    alone, inside = with_object(np.zeros((*SHAPE, 2)))
    np.testing.assert_allclose(remove_camera(alone, None, model)[inside], alone[inside], atol=0.01)


def test_cells_on_one_line_leave_the_rest_open_but_fit():
    covered = np.zeros(SHAPE, bool)
    covered[4] = True
    field = np.where(covered[..., None], plane((3, 2, 0, 1, 1, 0)), 0)
    np.testing.assert_allclose(remove_camera(field, covered, "affine"), 0, atol=1e-3)
