"""The motion field against a slow painter."""

from itertools import product

import numpy as np
import pytest

from tatscli.video.field import rasterise
from tatscli.video.orientation import UPRIGHT, Orientation

ORIENTATIONS = [Orientation(*flags) for flags in product((False, True), repeat=3)]
FIELDS = np.dtype(
    {
        "names": ["source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"],
        "formats": ["i4", "u1", "u1", "i2", "i2", "i4", "i4", "u2"],
    }
)


def random_vectors(rng, coded, count, sides=(4, 8, 16), sources=(-1, 1), grid=4):
    """Blocks anywhere on a grid, overlapping and sticking out of the picture."""
    vectors = np.zeros(count, FIELDS)
    vectors["source"] = rng.choice(sources, count)
    vectors["w"], vectors["h"] = rng.choice(sides, count), rng.choice(sides, count)
    for axis, side in zip("xy", coded, strict=True):
        corner = rng.integers(-1, side // grid + 2, count) * grid
        vectors[f"dst_{axis}"] = corner + vectors["w" if axis == "x" else "h"] // 2
        vectors[f"motion_{axis}"] = rng.integers(-60, 61, count)
    vectors["motion_scale"] = rng.choice((2, 4), count)
    return vectors


def painted(vectors, coded, stored, cell, orientation, past=1, future=1):
    """Share out the pixels of every vector that counts among the cells they touch."""
    width, height = coded
    rows, columns = -(-height // 16), -(-width // 16)

    def block(vector):
        x, y = int(vector["dst_x"]) // 16, int(vector["dst_y"]) // 16
        return min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)

    with_past = {block(vector) for vector in vectors if vector["source"] < 0}
    upright = orientation.size(width, height)
    scale = [stored[axis] / upright[axis] for axis in (0, 1)]
    shape = (-(-stored[1] // cell), -(-stored[0] // cell))
    total, area = np.zeros((*shape, 2)), np.zeros(shape)
    for vector in vectors:
        ahead = vector["source"] > 0
        if ahead and block(vector) in with_past:
            continue
        sign = (1 / future if ahead else -1 / past) / int(vector["motion_scale"])
        moved = [sign * int(vector["motion_x"]), sign * int(vector["motion_y"])]
        if orientation.transpose:
            moved.reverse()
        for axis, flip in enumerate((orientation.flip_x, orientation.flip_y)):
            moved[axis] *= -scale[axis] if flip else scale[axis]
        left = int(vector["dst_x"]) - int(vector["w"]) // 2
        top = int(vector["dst_y"]) - int(vector["h"]) // 2
        for y in range(max(top, 0), min(top + int(vector["h"]), height)):
            for x in range(max(left, 0), min(left + int(vector["w"]), width)):
                place = [y, x] if orientation.transpose else [x, y]
                for axis, flip in enumerate((orientation.flip_x, orientation.flip_y)):
                    if flip:
                        place[axis] = upright[axis] - 1 - place[axis]
                spans = [
                    (place[axis] * scale[axis], (place[axis] + 1) * scale[axis]) for axis in (0, 1)
                ]
                for row, column in product(range(shape[0]), range(shape[1])):
                    across = min(spans[0][1], column * cell + cell) - max(
                        spans[0][0], column * cell
                    )
                    down = min(spans[1][1], row * cell + cell) - max(spans[1][0], row * cell)
                    if across > 0 and down > 0:
                        area[row, column] += across * down
                        total[row, column] += across * down * np.array(moved)
    return total / np.where(area > 1e-9, area, 1)[..., None], area > 1e-9


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_equals_the_slow_painter_in_every_orientation(orientation):
    rng = np.random.default_rng(5)
    coded, upright = (38, 27), orientation.size(38, 27)
    for stored, cell in ((upright, 8), (tuple(side * 2 // 3 for side in upright), 5)):
        vectors = random_vectors(rng, coded, 25)
        field, covered = rasterise(
            vectors,
            coded=coded,
            stored=stored,
            cell=cell,
            orientation=orientation,
            past=3,
            future=2,
        )
        expected, known = painted(vectors, coded, stored, cell, orientation, past=3, future=2)
        assert field.shape == expected.shape and field.dtype == np.float32
        np.testing.assert_allclose(field, expected, atol=1e-4)
        np.testing.assert_array_equal(covered, known)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_painter_for_any_blocks(seed):
    rng = np.random.default_rng(seed)
    coded = tuple(int(side) for side in rng.integers(1, 40, 2))
    stored = tuple(max(1, int(side * rng.uniform(0.3, 1))) for side in coded)
    vectors = random_vectors(rng, coded, 12, sides=(2, 6, 16, 32), grid=int(rng.choice([1, 2, 8])))
    field, _ = rasterise(vectors, coded=coded, stored=stored, cell=7)
    np.testing.assert_allclose(field, painted(vectors, coded, stored, 7, UPRIGHT)[0], atol=1e-4)


def test_the_past_counts_and_the_future_fills_its_holes():
    vectors = np.zeros(3, FIELDS)
    vectors["source"], vectors["w"], vectors["h"] = (-1, 1, 1), 16, 16
    vectors["dst_x"], vectors["dst_y"] = (8, 8, 24), 8
    vectors["motion_x"], vectors["motion_scale"] = (-8, 20, 20), 4
    field, covered = rasterise(vectors, coded=(48, 16), stored=(48, 16), cell=16)
    assert field[0, :, 0].tolist() == [2, 5, 0]
    assert covered[0].tolist() == [True, True, False]
    assert not field[..., 1].any()
