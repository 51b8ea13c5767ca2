"""The rendered set: the class is the movement, and nothing in a single frame tells it."""

import numpy as np
import pytest

from tatscli.demo.movements import MOVEMENTS, draw_track, noise, render

SIDE = 64


def tracks(name: str, count: int = 400, frames: int = 20):
    for seed in range(count):
        yield draw_track(
            MOVEMENTS[name], frames=frames, side=SIDE, generator=np.random.default_rng(seed)
        )


def steps_of(track) -> np.ndarray:
    """Displacement from frame to frame, the short way round the torus."""
    return (np.diff(track.centre_T2, axis=0) + SIDE / 2) % SIDE - SIDE / 2


@pytest.mark.parametrize(
    ("name", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_lines_go_straight_at_one_speed(name, axis, sign):
    for track in tracks(name, 20):
        steps = steps_of(track)
        assert np.allclose(steps[:, 1 - axis], 0, atol=1e-4)
        assert np.allclose(steps[:, axis], steps[0, axis], atol=1e-4)
        assert 0.03 * SIDE <= sign * steps[0, axis] + 1e-4 <= 0.05 * SIDE + 2e-4
        assert np.ptp(track.scale_T) == 0


@pytest.mark.parametrize(("name", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_circles_turn_their_way(name, sign):
    """With y downwards a clockwise turn has a positive cross product of successive steps."""
    for track in tracks(name, 20):
        (x0, y0), (x1, y1) = steps_of(track)[:-1].T, steps_of(track)[1:].T
        assert (sign * (x0 * y1 - y0 * x1) > 0).all()
        assert np.allclose(np.hypot(x0, y0), np.hypot(x0, y0)[0], rtol=1e-3)


@pytest.mark.parametrize(("name", "sign"), [("grow", 1), ("shrink", -1)])
def test_sizes_change_steadily_and_start_again_at_the_limit(name, sign):
    jumps = 0
    for track in tracks(name, 40):
        growth = sign * np.diff(np.log(track.scale_T))
        steady = growth > 0
        assert np.allclose(growth[steady], growth[steady][0], atol=1e-5)
        assert (growth[~steady] < -0.7).all() and (~steady).sum() <= 2
        jumps += (~steady).sum()
        assert np.ptp(track.centre_T2) <= SIDE and (np.diff(track.centre_T2, axis=0) == 0).all()
    assert jumps > 0


@pytest.mark.parametrize("frame", [0, 7, 19])
@pytest.mark.parametrize("name", MOVEMENTS)
def test_in_any_one_frame_place_and_size_are_uniform(name, frame):
    """Kolmogorov-Smirnov at 0.1 % for 400 tracks: the same law for every class, so no clue."""
    ranks = (np.arange(400) + 0.5) / 400
    low, high = np.log(0.6), np.log(1.6)
    drawn = list(tracks(name))
    for values in (
        [track.centre_T2[frame, 0] / SIDE for track in drawn],
        [track.centre_T2[frame, 1] / SIDE for track in drawn],
        [(np.log(track.scale_T[frame]) - low) / (high - low) for track in drawn],
    ):
        assert np.abs(np.sort(values) - ranks).max() < 1.95 / 400**0.5


def test_the_look_does_not_depend_on_the_class():
    """With the same generator every class has the same picture, differently moved."""
    still = {
        name: render(movement, frames=1, side=SIDE, generator=np.random.default_rng(5))
        for name, movement in MOVEMENTS.items()
        if not movement.orbit
    }
    first = next(iter(still.values()))
    assert all((picture == first).all() for picture in still.values())


def test_rendered_content_moves_as_its_track_says():
    """The bright sprite's centre of mass follows the track (drawn by the same generator)."""
    for name in ("right", "down", "clockwise"):
        for seed in range(6):
            video = render(
                MOVEMENTS[name], frames=6, side=SIDE, generator=np.random.default_rng(seed)
            )
            track = draw_track(
                MOVEMENTS[name], frames=6, side=SIDE, generator=np.random.default_rng(seed)
            )
            for picture, centre in zip(video, track.centre_T2, strict=True):
                weight = (picture.mean(axis=-1) > 0.5 * 255).astype(float)
                angles = 2 * np.pi * np.arange(SIDE) / SIDE
                found = [
                    np.angle((weight.sum(axis=axis) * np.exp(1j * angles)).sum()) for axis in (0, 1)
                ]
                gap = np.array(found) * SIDE / (2 * np.pi) - centre
                assert (np.abs((gap + SIDE / 2) % SIDE - SIDE / 2) < 4).all()


def test_clips_repeat_by_seed_and_differ_between_seeds():
    clips = [
        render(MOVEMENTS["up"], frames=2, side=SIDE, generator=np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    assert clips[0].shape == (2, SIDE, SIDE, 3) and clips[0].dtype == np.uint8
    assert (clips[0] == clips[1]).all() and (clips[0] != clips[2]).any()


def test_noise_tiles_and_fills_its_range():
    field = noise(32, octaves=3, generator=np.random.default_rng(0))
    assert field.min() == 0 and field.max() == 1
    inside = np.abs(np.diff(field, axis=0)).max()
    assert np.abs(field[0] - field[-1]).max() <= inside
