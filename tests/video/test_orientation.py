"""Display matrices: which way a picture is turned, against the matrix's own arithmetic."""

from itertools import product

import numpy as np
import pytest

from tatscli.video.orientation import UPRIGHT, Orientation

ONE = 1 << 16
MATRICES = [(a, 0, 0, d) for a, d in product((-1, 1), repeat=2)] + [
    (0, b, c, 0) for b, c in product((-1, 1), repeat=2)
]


def display_matrix(a: float, b: float, c: float, d: float) -> bytes:
    values = [a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30]
    return np.array(values, np.int64).astype(np.int32).tobytes()


@pytest.mark.parametrize("matrix", MATRICES)
def test_every_pixel_goes_where_the_matrix_sends_it(matrix):
    a, b, c, d = matrix
    image = np.arange(6).reshape(2, 3)
    places = {(a * x + c * y, b * x + d * y): image[y, x] for y, x in product(range(2), range(3))}
    left, top = min(x for x, _ in places), min(y for _, y in places)
    expected = np.full((3, 2) if a == 0 else (2, 3), -1)
    for (x, y), value in places.items():
        expected[y - top, x - left] = value
    orientation = Orientation.from_matrix(display_matrix(*matrix))
    assert np.array_equal(orientation.image(image), expected)
    assert orientation.size(3, 2) == expected.shape[::-1]
    assert orientation.mirrored == (a * d - b * c < 0)


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_is_clockwise_after_mirroring(matrix):
    orientation = Orientation.from_matrix(display_matrix(*matrix))
    image = np.arange(6).reshape(2, 3)
    mirrored = image[:, ::-1] if orientation.mirrored else image
    turned = np.rot90(mirrored, -orientation.rotation // 90)
    assert np.array_equal(orientation.image(image), turned)


@pytest.mark.parametrize(
    "matrix",
    [(0.7071, 0.7071, -0.7071, 0.7071), (0, 0, 0, 0), (1, 0.5, 0, 1)],
    ids=["45 degrees", "nothing", "sheared"],
)
def test_other_matrices_leave_the_picture_as_it_is(matrix):
    assert Orientation.from_matrix(display_matrix(*matrix)) == UPRIGHT


def test_garbage_in_the_matrix_is_harmless():
    lowest = np.full(9, np.iinfo(np.int32).min, np.int32).tobytes()
    assert Orientation.from_matrix(lowest) == UPRIGHT
