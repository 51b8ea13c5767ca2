"""The motion field: a slow painter as reference, and rendered content of known motion."""

from itertools import product

import numpy as np
import pytest

from tatscli.video.frames import read_frames
from tatscli.video.motion import rasterise
from tatscli.video.orientation import UPRIGHT, Orientation
from tests.clips import CLEAN_VECTORS, moving_patch, pan, render, static

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


def painted(vectors, coded, stored, cell, orientation):
    """Paint every vector on its pixels, then share every pixel out among the cells it touches."""
    width, height = coded
    layers = {-1: np.zeros((height, width, 3)), 1: np.zeros((height, width, 3))}
    for vector in vectors:
        left = int(vector["dst_x"]) - int(vector["w"]) // 2
        top = int(vector["dst_y"]) - int(vector["h"]) // 2
        sign = int(vector["source"]) / int(vector["motion_scale"])
        value = (1, sign * vector["motion_x"], sign * vector["motion_y"])
        for y in range(max(top, 0), min(top + int(vector["h"]), height)):
            for x in range(max(left, 0), min(left + int(vector["w"]), width)):
                layers[int(vector["source"])][y, x] += value
    upright = orientation.size(width, height)
    scale = [stored[axis] / upright[axis] for axis in (0, 1)]
    shape = (-(-stored[1] // cell), -(-stored[0] // cell))
    total, area = np.zeros((*shape, 2)), np.zeros(shape)
    for y, x in product(range(height), range(width)):
        layer = layers[-1] if layers[-1][y, x, 0] else layers[1]
        count, dx, dy = layer[y, x]
        if not count:
            continue
        place, step = [x, y], [dx / count, dy / count]
        if orientation.transpose:
            place, step = place[::-1], step[::-1]
        for axis, flip in enumerate((orientation.flip_x, orientation.flip_y)):
            if flip:
                place[axis] = upright[axis] - 1 - place[axis]
                step[axis] = -step[axis]
        spans = [(place[axis] * scale[axis], (place[axis] + 1) * scale[axis]) for axis in (0, 1)]
        for row, column in product(range(shape[0]), range(shape[1])):
            across = min(spans[0][1], column * cell + cell) - max(spans[0][0], column * cell)
            down = min(spans[1][1], row * cell + cell) - max(spans[1][0], row * cell)
            if across > 0 and down > 0:
                area[row, column] += across * down
                total[row, column] += across * down * np.array(step) * scale
    return total / np.where(area > 1e-9, area, 1)[..., None]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
def test_equals_the_slow_painter_in_every_orientation(orientation):
    rng = np.random.default_rng(5)
    coded, upright = (38, 27), orientation.size(38, 27)
    for stored, cell in ((upright, 8), (tuple(side * 2 // 3 for side in upright), 5)):
        vectors = random_vectors(rng, coded, 25)
        field = rasterise(vectors, coded=coded, stored=stored, cell=cell, orientation=orientation)
        expected = painted(vectors, coded, stored, cell, orientation)
        assert field.shape == expected.shape and field.dtype == np.float32
        np.testing.assert_allclose(field, expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_slow_painter_for_any_blocks(seed):
    rng = np.random.default_rng(seed)
    coded = tuple(int(side) for side in rng.integers(1, 40, 2))
    stored = tuple(max(1, int(side * rng.uniform(0.3, 1))) for side in coded)
    vectors = random_vectors(rng, coded, 12, sides=(2, 6, 16, 32), grid=int(rng.choice([1, 2, 8])))
    field = rasterise(vectors, coded=coded, stored=stored, cell=7)
    np.testing.assert_allclose(field, painted(vectors, coded, stored, 7, UPRIGHT), atol=1e-4)


def test_the_past_counts_and_the_future_fills_its_holes():
    vectors = np.zeros(2, FIELDS)
    vectors["source"], vectors["w"], vectors["h"] = (-1, 1), (16, 32), 16
    vectors["dst_x"], vectors["dst_y"] = (8, 16), 8
    vectors["motion_x"], vectors["motion_scale"] = (-8, 20), 4
    field = rasterise(vectors, coded=(48, 16), stored=(48, 16), cell=16)
    assert field[0, :, 0].tolist() == [2, 5, 0]
    assert not field[..., 1].any()


@pytest.mark.parametrize("short_side", [192, 96, 60], ids=["full", "half", "odd"])
@pytest.mark.parametrize(
    ("codec", "suffix", "options", "bit_rate"),
    [
        ("libx264", ".mp4", CLEAN_VECTORS, None),
        ("mpeg4", ".avi", {}, 20_000_000),
        ("mpeg2video", ".ts", {}, 20_000_000),
    ],
)
def test_a_pan_reads_as_its_own_speed(tmp_path, codec, suffix, options, bit_rate, short_side):
    path = render(
        tmp_path / f"pan{suffix}", pan((3, -2)), codec=codec, options=options, bit_rate=bit_rate
    )
    frames = list(read_frames(path, short_side=short_side))
    scale = np.array([frames[0].width / 256, frames[0].height / 192])
    assert frames[0].height == short_side
    field = np.stack([frame.motion for frame in frames if frame.valid])
    assert len(field) >= 21  # of 24; the others are key frames
    error = np.abs(field[:, 1:-1, 1:-1] - scale * (3, -2))
    if codec == "libx264":
        assert error.max() < 0.1
    assert np.quantile(error, 0.99) < 0.1  # now and then an encoder prefers another block


@pytest.mark.parametrize("step", [(-4, 1), (2, 5)])
def test_a_pan_in_another_direction(tmp_path, step):
    path = render(tmp_path / "pan.mp4", pan(step), options=CLEAN_VECTORS)
    field = np.stack([frame.motion for frame in read_frames(path) if frame.valid])
    assert np.abs(field[:, 1:-1, 1:-1] - step).max() < 0.1


def test_a_moving_patch_moves_alone(tmp_path):
    path = render(
        tmp_path / "patch.mp4", moving_patch((4, 2), start=(32, 32)), options=CLEAN_VECTORS
    )
    for index, frame in enumerate(read_frames(path)):
        if frame.valid:
            left, top = 32 + 4 * index, 32 + 2 * index
            inside = frame.motion[
                -(-top // 16) : (top + 64) // 16, -(-left // 16) : (left + 64) // 16
            ]
            np.testing.assert_allclose(inside, np.broadcast_to((4, 2), inside.shape), atol=0.1)
            assert np.abs(frame.motion[:, 14:]).max() < 0.1 or left + 64 >= 14 * 16


def test_b_frames_point_the_way_the_content_goes(tmp_path):
    path = render(tmp_path / "pan.mp4", pan((3, -2)), options={"bf": "3", "crf": "12"})
    means = [f.motion[1:-1, 1:-1].mean((0, 1)) for f in read_frames(path) if f.valid]
    assert len(means) == 23
    for x, y in means:  # distances differ, since the reference is not always the frame before
        assert x > 2.5 and y < -1.5
        assert x / y == pytest.approx(-1.5, abs=0.15)


def test_a_still_picture_has_valid_zeros_and_key_frames_have_none(tmp_path):
    frames = list(read_frames(render(tmp_path / "still.mp4", static(frames=8))))
    assert [frame.valid for frame in frames] == [False] + [True] * 7
    assert not any(frame.motion.any() for frame in frames)


@pytest.mark.parametrize(
    ("codec", "suffix", "options"),
    [("libx264", ".mp4", {"g": "1"}), ("mjpeg", ".avi", {}), ("libvpx-vp9", ".webm", {})],
)
def test_codecs_without_vectors_are_never_valid(tmp_path, codec, suffix, options):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    clip = pan(frames=4, height=64, width=64)
    path = render(tmp_path / f"clip{suffix}", clip, codec=codec, options=options, pix_fmt=pix_fmt)
    frames = list(read_frames(path))
    assert len(frames) == 4
    assert not any(frame.valid or frame.motion.any() for frame in frames)


def test_motion_turns_with_the_picture(tmp_path):
    av = pytest.importorskip("av", minversion="18")
    del av
    clockwise = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    plain = render(tmp_path / "plain.mp4", pan((3, -2)), options=CLEAN_VECTORS)
    turned = render(tmp_path / "turned.mp4", pan((3, -2)), options=CLEAN_VECTORS, matrix=clockwise)
    for one, other in zip(read_frames(plain), read_frames(turned), strict=True):
        assert (other.width, other.height) == (one.height, one.width)
        gray, turned_gray = (f.rgb().astype(float) @ (0.299, 0.587, 0.114) for f in (one, other))
        assert np.abs(np.rot90(gray, -1) - turned_gray).max() < 3
        if other.valid:
            assert np.abs(other.motion[1:-1, 1:-1] - (2, 3)).max() < 0.1
