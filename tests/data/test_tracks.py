"""Fields of stored frames become those of a clip: held against loops over frames and cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatscli.data import tracks
from tatscli.data.tracks import FURTHEST, gaps, nearest, pieces, track

CELL = 8


def noise(frames: int, rows: int = 5, columns: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 9, (frames, rows, columns, 2)).astype(np.float32)


def known(frames: int, *key_frames: int) -> np.ndarray:
    return ~np.isin(np.arange(frames), key_frames)


def bilinear(field: np.ndarray, x: float, y: float) -> np.ndarray:
    """Read a field between its cells; beyond the border as at the border."""
    rows, columns = field.shape[:2]
    x, y = min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)
    left, top = min(int(x), max(columns - 2, 0)), min(int(y), max(rows - 2, 0))
    right, bottom = min(left + 1, columns - 1), min(top + 1, rows - 1)
    u, v = x - left, y - top
    upper = field[top, left] * (1 - u) + field[top, right] * u
    lower = field[bottom, left] * (1 - u) + field[bottom, right] * u
    return upper * (1 - v) + lower * v


def path_of(field: np.ndarray, frame: int, gap: int, row: int, column: int) -> list[np.ndarray]:
    """Walk back from a cell of a frame; what lies before frame 0 moves like it."""
    steps: list[np.ndarray] = []
    for back in range(gap):
        x, y = np.array([column, row]) - sum(steps, np.zeros(2)) / CELL
        steps.append(bilinear(field[max(frame - back, 0)], x, y))
    return steps


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_chaining_is_a_walk_back_along_the_path(
    steps: list[int], start: int, rows: int, columns: int
) -> None:
    frames = [start, *(start + np.cumsum(steps)).tolist()]
    field = noise(40, rows, columns)
    (wanted,) = pieces(frames, 40)
    found = track(
        field[wanted.start : wanted.stop],
        np.ones(len(wanted), bool),
        frames,
        wanted.start,
        cell=CELL,
    )
    for time, (frame, gap) in enumerate(zip(frames, [steps[0], *steps], strict=True)):
        got = found.steps_JT2yx[:, time].numpy()
        assert not got[gap:].any()
        for row in range(rows):
            for column in range(columns):
                path = path_of(field, frame, gap, row, column)
                np.testing.assert_allclose(got[:gap, :, row, column], path, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([4, 6, 8], [2, 2, 2]),
        ([4, 5, 9], [1, 1, 4]),
        ([3], [1]),
        ([2, 3, 3, 3], [1, 1, 0, 0]),  # held
        ([3, 3, 3], [0, 0, 0]),  # one picture, which stands still
        ([0, 0], [0, 0]),
        ([1, 1, 2, 2], [1, 0, 1, 0]),
        ([2, 2, 6], [4, 0, 4]),
        ([0, 2, 4, 1, 3], [2, 2, 2, 2, 2]),  # a loop
        ([0, 3, 1], [3, 3, 3]),
        ([5, 4, 3], [1, 1, 1]),
    ],
)
def test_gaps_by_hand(frames: list[int], expected: list[int]) -> None:
    assert gaps(frames) == expected


def test_a_piece_begins_with_the_way_into_the_first_frame_and_ends_one_after_the_last() -> None:
    assert pieces([10, 14, 18], 40) == [range(7, 20)]
    assert pieces([10, 11, 12], 13) == [range(10, 13)]  # the video ends
    assert pieces([2, 6], 40) == [range(8)]  # and begins
    assert pieces([4, 8, 1], 9) == [range(9)]
    assert pieces([3, 3], 9) == [range(3, 5)]
    for frames, wrong in (([4, 9], 9), ([-1, 3], -1)):
        with pytest.raises(IndexError, match=f"no frame {wrong} in a video of 9 frames"):
            pieces(frames, 9)


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=8), st.integers(1, 60), st.integers(0, 120)
)
def test_pieces_are_the_frames_of_each_way_and_the_ones_after(
    drawn: list[int], more: int, stride: int
) -> None:
    length = max(drawn) + more
    for frames in (drawn, sorted(drawn), list(range(0, length, stride + 1))):
        found = pieces(frames, length)
        numbers = [number for piece in found for number in piece]
        assert numbers == sorted(set(numbers))
        needed = set()
        for frame, gap in zip(frames, gaps(frames), strict=True):
            first = frame if gap == 0 else frame + 1 - min(gap, FURTHEST)
            needed |= set(range(max(first, 0), min(frame + 2, length)))
        assert needed <= set(numbers)
        if max(gaps(frames)) > FURTHEST:
            assert needed == set(numbers)
        else:
            assert len(found) == 1


@pytest.mark.parametrize("fits", [{}, {"robust": True, "camera": "affine"}])
def test_content_is_followed_no_further_than_the_limit(fits: dict[str, Any]) -> None:
    frames, length = [30, 230, 300, 310, 310, 470], 500
    field = noise(length, 3, 4) / 20  # small, so that errors do not grow along the way
    valid = known(length, 0, 230, 290, 291, 292, 470)
    filled = field[nearest(valid)]
    field[~valid] = 0
    wanted = pieces(frames, length)
    kept = np.concatenate(wanted)
    assert len(kept) < 300
    found = track(field[kept], valid[kept], frames, wanted, cell=CELL, **fits)
    assert found.steps_JT2yx.shape[0] == FURTHEST
    assert found.valid_T.tolist() == [True, False, True, True, False, False]
    if fits:  # the same as of these frames alone, prepared one by one
        ways = [
            range(f, f - min(gap, FURTHEST), -1)
            for f, gap in zip(frames, gaps(frames), strict=True)
        ]
        used = sorted({int(nearest(valid)[max(n, 0)]) for way in ways for n in way})
        tops = np.percentile(np.linalg.norm(field[used], axis=-1).reshape(len(used), -1), 95, 1)
        scaled = field[used] * (np.median(tops) / tops)[:, None, None, None]
        ready = tracks.remove_camera(scaled.astype(np.float32), None, "affine")
        filled = ready[np.searchsorted(used, nearest(valid)).clip(max=len(used) - 1)]
    for time, (frame, gap) in enumerate(zip(frames, gaps(frames), strict=True)):
        steps = min(gap, FURTHEST)
        got = found.steps_JT2yx[:, time].numpy()
        assert not got[steps:].any()
        for row in range(3):
            for column in range(4):
                path = path_of(filled, frame, steps, row, column)
                path = np.reshape(path, (steps, 2))
                np.testing.assert_allclose(got[:steps, :, row, column], path, atol=5e-3)


def test_a_long_video_takes_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []

    def counting(field: np.ndarray, *given: Any) -> np.ndarray:
        fitted.append(len(field))
        return field

    monkeypatch.setattr(tracks, "remove_camera", counting)
    frames, length = list(range(300, 9000, 580)), 9000
    wanted = pieces(frames, length)
    assert sum(map(len, wanted)) == len(frames) * (FURTHEST + 1)
    kept = np.concatenate(wanted)
    found = track(
        noise(len(kept), 2, 2), np.ones(len(kept), bool), frames, wanted, cell=CELL, camera="affine"
    )
    assert fitted == [len(frames) * FURTHEST]
    assert found.steps_JT2yx.shape == (FURTHEST, len(frames), 2, 2, 2)


def test_the_frame_after_the_last_counts_only_where_it_fills() -> None:
    field = noise(6)
    other = field.copy()
    other[5] *= 100
    for last_known in (True, False):
        valid = known(6) if last_known else known(6, 4)
        one, two = (
            track(values, valid, [1, 2, 3, 4], 0, cell=CELL, robust=True).steps_JT2yx
            for values in (field, other)
        )
        assert torch.equal(one, two) == last_known


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_the_nearest_valid_frame_is_the_next_or_else_the_last(valid: list[bool]) -> None:
    if not any(valid):
        return
    for frame, found in enumerate(nearest(np.array(valid))):
        after = [other for other in range(frame, len(valid)) if valid[other]]
        before = [other for other in range(frame) if valid[other]]
        assert found == (after[0] if after else before[-1])


def test_key_frames_take_the_next_field_or_else_the_one_before() -> None:
    field = noise(8)
    field[[0, 3, 7]] = 0
    frames = list(range(8))
    found = track(field, known(8, 0, 3, 7), frames, 0, cell=CELL)
    steps = found.steps_JT2yx[0].movedim(1, -1).numpy()
    for frame, source in zip(frames, [1, 1, 2, 4, 4, 5, 6, 6], strict=True):
        np.testing.assert_array_equal(steps[frame], field[source])
    assert found.valid_T.tolist() == [False, True, True, False, True, True, True, False]
    assert not found.missing


def test_a_key_frame_within_a_gap_is_filled_too() -> None:
    velocity = np.array([3.0, -2.0], np.float32)
    field = np.broadcast_to(velocity, (20, 5, 7, 2)).copy()
    field[[0, 5, 10]] = 0
    found = track(field[:14], known(20, 0, 5, 10)[:14], [0, 4, 8, 12], 0, cell=CELL)
    total = found.steps_JT2yx.sum(0).movedim(1, -1).numpy()
    np.testing.assert_allclose(total, np.broadcast_to(4 * velocity, total.shape))
    assert found.valid_T.tolist() == [False, True, True, True]


def test_held_frames_stand_still_and_a_loop_starts_afresh() -> None:
    field = noise(6)
    held = track(field, known(6), [2, 4, 4, 4], 0, cell=CELL)
    assert not held.steps_JT2yx[:, 2:].any()
    assert held.valid_T.tolist() == [True, True, False, False]
    still = track(field, known(6), [3, 3, 3], 0, cell=CELL)
    assert not still.missing
    assert not still.steps_JT2yx.any()
    assert not still.valid_T.any()
    looped = track(field, known(6), [1, 3, 5, 1], 0, cell=CELL)
    torch.testing.assert_close(looped.steps_JT2yx[:, 3], looped.steps_JT2yx[:, 0])
    assert looped.steps_JT2yx[:, 3].any()


def test_without_one_valid_frame_all_is_missing_and_still() -> None:
    found = track(noise(6), np.zeros(6, bool), [1, 3, 4], 0, cell=CELL)
    assert found.missing
    assert found.steps_JT2yx.shape[1:] == (3, 2, 5, 7)
    assert not found.steps_JT2yx.any()
    assert not found.valid_T.any()


def test_a_valid_frame_between_those_of_the_clip_is_enough() -> None:
    valid = np.zeros(6, bool)
    valid[3] = True
    found = track(noise(6), valid, [0, 2, 4], 0, cell=CELL)
    assert not found.missing
    assert found.steps_JT2yx.any()
    assert not found.valid_T.any()


def test_content_that_turns_round_within_the_gap_has_gone_far_and_got_nowhere() -> None:
    field = np.zeros((9, 6, 6, 2), np.float32)
    field[1::2, ..., 0], field[2::2, ..., 0] = 5, -5  # there and back
    found = track(field[1:], known(9)[1:], [4, 8], 1, cell=CELL)
    assert found.steps_JT2yx.sum(0).abs().max() < 1e-5
    speed = found.steps_JT2yx.norm(dim=2).sum(0)
    torch.testing.assert_close(speed, torch.full_like(speed, 20.0))


def test_robust_scaling_brings_frames_of_unknown_span_to_one_scale() -> None:
    """Frames multiplied by what they span; a still part is not moved by it."""
    one = noise(1)[0]
    one[:2] = 0
    span = np.array([1, 2, 4, 1, 3, 2, 2], np.float32)
    field = one * span[:, None, None, None]
    frames = list(range(7))
    found = track(field, known(7), frames, 0, cell=CELL, robust=True)
    steps = found.steps_JT2yx[0].movedim(1, -1).numpy()
    for step in steps:  # the middle one of the spans is 2
        np.testing.assert_allclose(step, 2 * one, rtol=1e-5)
    plain = track(field, known(7), frames, 0, cell=CELL).steps_JT2yx[0].movedim(1, -1).numpy()
    np.testing.assert_array_equal(plain, field)


def test_robust_scaling_is_by_the_95th_percentile_of_moving_cells() -> None:
    field = noise(5)
    field[:, 0] = 0
    field[3] = 0  # nothing moves: left alone
    lengths = np.linalg.norm(field, axis=-1)
    tops = {k: np.percentile(lengths[k][lengths[k] > 0], 95) for k in (0, 1, 2, 4)}
    middle = np.median(list(tops.values()))
    found = track(field, known(5), list(range(5)), 0, cell=CELL, robust=True)
    steps = found.steps_JT2yx[0].movedim(1, -1).numpy()
    for k, top in tops.items():
        np.testing.assert_allclose(steps[k], field[k] * middle / top, rtol=1e-5)
    assert not steps[3].any()
    still = track(np.zeros_like(field), known(5), list(range(5)), 0, cell=CELL, robust=True)
    assert not still.steps_JT2yx.any()


def scene(camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a field of 6 frames under a camera's motion, and where a patch moves by (4, 3)."""
    y, x = np.mgrid[-1:1:9j, -1:1:12j]
    field = np.zeros((6, 9, 12, 2), np.float32)
    for frame in range(6):
        pan = {"pan": (3.0, -1.0), "zoom": (0.5, 0.0), "shake": ((-1) ** frame * 4.0, frame - 2.5)}
        field[frame] = pan[camera]
        if camera == "zoom":
            field[frame] += 3 * np.stack([x, y], -1)
    inside = np.zeros((9, 12), bool)
    inside[3:6, 4:8] = True
    field[:, inside] += (4.0, 3.0)
    return field, inside


@pytest.mark.parametrize(
    ("camera", "model"),
    [
        ("pan", "median"),
        ("pan", "affine"),
        ("zoom", "affine"),
        ("shake", "median"),
        ("shake", "affine"),
    ],
)
def test_the_camera_goes_before_chaining_and_the_patch_stays(camera: str, model: str) -> None:
    field, inside = scene(camera)
    # Steps of one frame first, then pairs of them.
    each = track(field, known(6), list(range(6)), 0, cell=16, camera=model)  # type: ignore[arg-type]
    steps = each.steps_JT2yx[0].movedim(1, -1).numpy()
    np.testing.assert_allclose(steps[:, ~inside], 0, atol=0.02)
    np.testing.assert_allclose(
        steps[:, inside], np.broadcast_to((4, 3), steps[:, inside].shape), atol=0.02
    )
    pairs = track(field, known(6), [1, 3, 5], 0, cell=16, camera=model)  # type: ignore[arg-type]
    first, last = pairs.steps_JT2yx.movedim(2, -1).numpy()
    core = np.zeros_like(inside)
    core[4:6, 5:8] = True  # the cells whose way leads through the patch
    np.testing.assert_allclose(
        first[:, core] + last[:, core], np.tile((8, 6), (3, 6, 1)), atol=0.04
    )


def test_without_the_camera_model_the_ground_moves() -> None:
    field, inside = scene("pan")
    found = track(field, known(6), list(range(6)), 0, cell=16)
    assert (found.steps_JT2yx[0].movedim(1, -1).numpy()[:, ~inside] == (3, -1)).all()


def test_a_cell_of_exactly_zero_stays_zero_but_counts_for_the_camera() -> None:
    """A patch before a still ground: the ground says that the camera rests."""
    field = np.zeros((3, 6, 6, 2), np.float32)
    field[:, 2:4, 2:4] = (5, 1)
    for model in ("median", "affine"):
        found = track(field, known(3), [0, 1, 2], 0, cell=16, camera=model)  # type: ignore[arg-type]
        np.testing.assert_allclose(found.steps_JT2yx[0].movedim(1, -1).numpy(), field, atol=1e-4)
    field[...] += (3, 0)
    field[:, 0, 0] = 0  # no vector there
    found = track(field, known(3), [0, 1, 2], 0, cell=16, camera="median")
    assert not found.steps_JT2yx[0, :, :, 0, 0].any()
