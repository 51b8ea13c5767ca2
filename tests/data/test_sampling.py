"""Exact index lists, and properties against references written the long way round."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.data.sampling import (
    chosen_frames,
    drawn_clip,
    eval_indices,
    fixed_indices,
    shown_at_rate,
    train_indices,
)
from tatscli.errors import DataError
from tatscli.recipe.schema import Sampling
from tests.data.fake_store import FakeStore

UNIFORM = Sampling(mode="uniform")

lengths = st.integers(1, 400)
strides = st.integers(1, 8)
counts = st.integers(1, 32)
seeds = st.integers(0, 2**32)


def dense(stride: int, short: str = "repeat_last") -> Sampling:
    return Sampling(mode="dense", stride=stride, short=short)


class Lowest(random.Random):
    """Draws the smallest value that can be drawn."""

    def randrange(self, start, stop=None, step=1):  # type: ignore[no-untyped-def]
        return 0 if stop is None else start


class Highest(random.Random):
    """Draws the largest."""

    def randrange(self, start, stop=None, step=1):  # type: ignore[no-untyped-def]
        return (start if stop is None else stop) - 1


def test_dense_window_moves_from_the_first_to_the_last_place_that_fits() -> None:
    assert train_indices(20, dense(4), 4, Lowest()) == [0, 4, 8, 12]
    assert train_indices(20, dense(4), 4, Highest()) == [4, 8, 12, 16]
    assert train_indices(16, dense(4), 4, Highest()) == [0, 4, 8, 12]
    assert train_indices(13, dense(4), 4, Highest()) == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("short", "expected"),
    [("repeat_last", [0, 4, 8, 8, 8, 8]), ("loop", [0, 4, 8, 2, 6, 0])],
)
def test_short_videos_do_what_is_named(short: str, expected: list[int]) -> None:
    assert train_indices(10, dense(4, short), 6, random.Random(0)) == expected
    assert eval_indices(10, dense(4, short), 6, 2) == [expected, expected]


@pytest.mark.parametrize(
    ("short", "expected"), [("repeat_last", [0, 1, 2, 2, 2]), ("loop", [0, 1, 2, 0, 1])]
)
def test_short_videos_in_uniform_mode(short: str, expected: list[int]) -> None:
    sampling = Sampling(mode="uniform", short=short)
    assert train_indices(3, sampling, 5, random.Random(0)) == expected
    assert eval_indices(3, sampling, 5, 2) == [expected, expected]


def test_short_error_names_length_and_need() -> None:
    with pytest.raises(DataError, match=r"`10` frames is too short.*stride 4 need 21") as caught:
        train_indices(10, dense(4, "error"), 6, random.Random(0))
    assert "repeat_last" in (caught.value.hint or "")
    assert eval_indices(21, dense(4, "error"), 6, 1) == [[0, 4, 8, 12, 16, 20]]
    with pytest.raises(DataError, match=r"`4` frames.*need 5"):
        eval_indices(4, Sampling(mode="uniform", short="error"), 5, 1)


@given(
    length=lengths,
    frames=counts,
    clips=st.integers(1, 6),
    stride=st.one_of(st.none(), strides),
    seed=seeds,
)
def test_fixed_clips_are_those_of_evaluation(
    length: int, frames: int, clips: int, stride: int | None, seed: int
) -> None:
    sampling = dense(stride) if stride else UNIFORM
    fixed = sampling.model_copy(update={"clips": clips})
    every = eval_indices(length, sampling, frames, clips)
    assert fixed_indices(length, fixed, frames) == every
    number = drawn_clip(fixed, random.Random(seed))
    assert number is not None and 0 <= number < clips
    # Who draws the number first gets the same clip as who does not ask for it.
    assert train_indices(length, fixed, frames, random.Random(seed)) == every[number]
    assert train_indices(length, fixed, frames, random.Random(0), clip=number) == every[number]
    assert drawn_clip(sampling, random.Random(seed)) is None
    assert eval_indices(length, fixed, frames, 3) == eval_indices(length, sampling, frames, 3)


def test_every_fixed_clip_is_drawn_equally_often() -> None:
    fixed, draw = Sampling(stride=1, clips=4), random.Random(0)
    starts = [train_indices(40, fixed, 10, draw)[0] for _ in range(4000)]
    assert {start: starts.count(start) > 900 for start in set(starts)} == dict.fromkeys(
        (0, 10, 20, 30), True
    )


def test_frames_of_a_stored_video_by_the_clock_in_one_clip_or_in_all() -> None:
    """A store of 25 frames a second; 10 ticks a second show every 2.5th."""
    store, sampling = FakeStore([30]), Sampling(fps=10)
    shown = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]
    assert chosen_frames(store, 0, sampling, lambda n: list(range(n))) == shown
    both = chosen_frames(store, 0, sampling, lambda n: eval_indices(n, sampling, 3, 2))
    assert both == [shown[:3], shown[-3:]]
    with pytest.raises(DataError, match=r"`videos/0\.mp4`: a video of `30` frames is too short"):
        chosen_frames(
            store, 0, dense(4, "error"), lambda n: eval_indices(n, dense(4, "error"), 9, 1)
        )


@pytest.mark.parametrize("sampling", [dense(2), UNIFORM])
def test_a_video_without_frames_is_an_error(sampling: Sampling) -> None:
    with pytest.raises(DataError, match="`0` frames"):
        train_indices(0, sampling, 4, random.Random(0))
    with pytest.raises(DataError, match="`0` frames"):
        eval_indices(0, sampling, 4, 1)


def test_dense_evaluation_lists() -> None:
    """A video of 50 frames has 13 on the grid of stride 4; windows of 4 start at 0, 4 and 9."""
    assert eval_indices(50, dense(4), 4, 1) == [[16, 20, 24, 28]]
    assert eval_indices(50, dense(4), 4, 2) == [[0, 4, 8, 12], [36, 40, 44, 48]]
    assert eval_indices(50, dense(4), 4, 3) == [
        [0, 4, 8, 12],
        [16, 20, 24, 28],
        [36, 40, 44, 48],
    ]


def test_uniform_evaluation_lists() -> None:
    assert eval_indices(16, UNIFORM, 4, 1) == [[2, 6, 10, 14]]
    assert eval_indices(16, UNIFORM, 4, 2) == [[0, 4, 8, 12], [2, 6, 10, 14]]
    assert eval_indices(10, UNIFORM, 4, 2) == [[0, 2, 5, 7], [1, 3, 6, 8]]


def test_uniform_training_takes_each_frame_of_each_segment() -> None:
    assert train_indices(10, UNIFORM, 4, Lowest()) == [0, 2, 5, 7]
    assert train_indices(10, UNIFORM, 4, Highest()) == [1, 4, 6, 9]
    rng = random.Random(0)
    seen = {index for _ in range(200) for index in train_indices(10, UNIFORM, 4, rng)}
    assert seen == set(range(10))


@given(lengths, strides, counts, seeds)
def test_dense_training_equals_the_reference(
    length: int, stride: int, frames: int, seed: int
) -> None:
    """The reference walks through the video frame by frame."""
    got = train_indices(length, dense(stride), frames, random.Random(seed))
    grid = [frame for frame in range(length) if frame >= got[0] and (frame - got[0]) % stride == 0]
    expected = (grid + [grid[-1]] * frames)[:frames]
    assert got == expected
    assert 0 <= got[0] <= max(0, length - frames * stride)


@given(lengths, strides, counts, st.integers(1, 10))
def test_dense_evaluation_equals_videomae(
    length: int, stride: int, frames: int, segments: int
) -> None:
    """VideoMAE takes all frames at the stride, pads them, and spaces windows evenly over them."""
    grid = list(range(0, length, stride))
    grid += [grid[-1]] * max(0, frames - len(grid))
    clips = eval_indices(length, dense(stride), frames, segments)
    assert len(clips) == segments
    for number, clip in enumerate(clips):
        if segments == 1:
            start = (len(grid) - frames) // 2
        else:
            start = int(number * Fraction(len(grid) - frames, segments - 1))
        assert clip == grid[start : start + frames]


@given(st.integers(1, 400), counts, st.integers(2, 10))
def test_uniform_evaluation_equals_the_interleaved_grid(
    length: int, frames: int, segments: int
) -> None:
    """VideoMAE's SSv2 test: the sorted union of the phases, dealt out in turn."""
    if length < frames:
        return
    tick = Fraction(length, frames)
    union = sorted(
        int(tick * Fraction(phase, segments) + tick * i)
        for i in range(frames)
        for phase in range(segments)
    )
    clips = eval_indices(length, UNIFORM, frames, segments)
    assert clips == [union[phase::segments] for phase in range(segments)]


@given(
    lengths,
    counts,
    seeds,
    st.sampled_from([dense(1), dense(3), dense(3, "loop"), UNIFORM]),
    st.integers(1, 6),
)
def test_every_list_stays_in_bounds_and_has_its_length(
    length: int, frames: int, seed: int, sampling: Sampling, segments: int
) -> None:
    clips = eval_indices(length, sampling, frames, segments)
    clips.append(train_indices(length, sampling, frames, random.Random(seed)))
    for clip in clips:
        assert len(clip) == frames
        assert all(type(index) is int and 0 <= index < length for index in clip)
        if sampling.short == "repeat_last":
            assert clip == sorted(clip)


def by_the_clock(times: list[float], fps: float) -> list[int]:
    """The last frame that is not later than each tick, found by looking at all of them."""
    ticks, found = 0, []
    while times[0] + ticks / fps <= times[-1] + 1e-9:
        now = times[0] + ticks / fps + 1e-9
        found.append(max(i for i, time in enumerate(times) if time <= now))
        ticks += 1
    return found


def test_the_clock_repeats_and_leaves_out() -> None:
    assert shown_at_rate(np.array([0.0, 0.5, 1.0]), 4) == [0, 0, 1, 1, 2]
    assert shown_at_rate(np.arange(9) / 8, 4) == [0, 2, 4, 6, 8]
    assert shown_at_rate(np.array([7.0]), 30) == [0]
    assert shown_at_rate(np.array([10.0, 10.04, 10.5, 11.0]), 2) == [0, 2, 3]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([1, 2, 5, 10, 25]))
def test_the_clock_shows_what_was_on_screen(gaps: list[int], fps: int) -> None:
    times = np.cumsum([0, *gaps]) / 100
    assert shown_at_rate(times, fps) == by_the_clock(times.tolist(), fps)


def test_a_rate_reads_every_tick() -> None:
    rate = Sampling(fps=8)
    assert train_indices(100, rate, 16, Lowest()) == list(range(16))
    assert eval_indices(20, rate, 16, 1) == [list(range(2, 18))]


def test_stride_and_rate_exclude_each_other() -> None:
    for wrong in ({"stride": 2, "fps": 8}, {"mode": "uniform", "fps": 8}, {}):
        with pytest.raises(ValueError, match="fps"):
            Sampling(**wrong)


def videomae(stride: int | None = None) -> Sampling:
    if stride is None:
        return Sampling(mode="uniform", indices="videomae")
    return Sampling(stride=stride, indices="videomae")


def test_fine_tuning_clips_of_videomae_divide_a_window_from_end_to_end() -> None:
    """16 frames of stride 4 from a video of 100: a window of 64 frames, its last frame included."""
    steps = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    assert train_indices(100, videomae(4), 16, Lowest(), labelled=True) == steps
    last = train_indices(100, videomae(4), 16, Highest(), labelled=True)
    assert last == [35 + step for step in steps]  # the video's last frame, 99, is never taken
    assert train_indices(100, videomae(4), 16, Lowest()) == list(range(0, 64, 4))
    assert train_indices(100, videomae(4), 16, Highest()) == list(range(36, 100, 4))


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (64, [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]),
        (40, [0, 4, 8, 13, 17, 22, 26, 31, 35, *[39] * 7]),
        (13, [0, 6, *[12] * 14]),
        (6, [0, *[5] * 15]),
        (3, [2] * 16),
    ],
)
def test_fine_tuning_clips_of_short_videos_as_videomae_fills_them(
    length: int, expected: list[int]
) -> None:
    """L // 4 frames evenly from 0 to L, L itself cut to L - 1, and that one for the rest."""
    assert train_indices(length, videomae(4), 16, random.Random(0), labelled=True) == expected


@given(st.integers(1, 300), st.integers(1, 8), counts, seeds)
def test_pretraining_clips_of_videomae_walk_as_its_loader_does(
    length: int, stride: int, frames: int, seed: int
) -> None:
    """Frames are counted from 1 there, and a step that would reach the last one is not taken."""
    got = train_indices(length, videomae(stride), frames, random.Random(seed))
    place, expected = got[0] + 1, []
    for _ in range(frames):
        expected.append(place - 1)
        if place + stride < length:
            place += stride
    assert got == expected
    assert 0 <= got[0] <= max(0, length - frames * stride)


def test_segments_of_videomae_leave_out_the_tail_and_short_videos_repeat_the_first_frame() -> None:
    assert train_indices(47, videomae(), 16, Lowest(), labelled=True) == list(range(0, 32, 2))
    assert train_indices(47, videomae(), 16, Highest(), labelled=True) == list(range(1, 32, 2))
    assert train_indices(15, videomae(), 16, random.Random(0), labelled=True) == [0] * 16


@given(st.integers(1, 60), st.integers(2, 4))
def test_videomae_tests_short_videos_in_interleaved_phases_too(length: int, segments: int) -> None:
    """Its `ssv2.py` has two; the sorted union of the phases is dealt out in turn."""
    tick = length / 16
    union = sorted(
        int(Fraction(tick) * (i + Fraction(phase, segments)))
        for i in range(16)
        for phase in range(segments)
    )
    clips = eval_indices(length, videomae(), 16, segments)
    assert clips == [union[phase::segments] for phase in range(segments)]
    dense_clips = eval_indices(length, videomae(4), 16, segments)
    assert dense_clips == eval_indices(length, dense(4), 16, segments)


def test_videomae_has_its_own_rules_for_short_videos() -> None:
    for wrong, problem in (({"stride": 4, "short": "loop"}, "short: loop"), ({"fps": 8}, "`fps`")):
        with pytest.raises(ValueError, match=problem):
            Sampling(**wrong, indices="videomae")
