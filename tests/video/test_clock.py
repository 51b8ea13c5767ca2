"""Presentation times from timestamps as files have them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.video.clock import Clock

EVEN = [index * 0.04 for index in range(60)]


def timed(timestamps, step=0.04):
    """Return the times that frames get, and the clock."""
    clock = Clock(step)
    frames = list(clock(zip(timestamps, range(len(timestamps)), strict=True)))
    assert [frame for _, frame in frames] == list(range(len(timestamps)))
    return [time for time, _ in frames], clock


@given(
    st.lists(st.floats(1e-4, 5), min_size=1, max_size=80),
    st.floats(-100, 2e9),
    st.sampled_from([0.001, 0.04, 1.0]),
)
def test_timestamps_that_rise_are_kept(gaps, start, step):
    given_times = list(start + np.cumsum(gaps))
    times, clock = timed(given_times, step)
    assert times == given_times
    assert clock.problem is None


@given(
    st.lists(
        st.none() | st.floats(-1e5, 1e5) | st.integers(0, 20).map(float) | st.just(math.nan),
        max_size=70,
    ),
    st.sampled_from([0.001, 0.04, 1.0]),
)
def test_every_frame_gets_a_time_and_times_rise(timestamps, step):
    times, _ = timed(timestamps, step)
    assert np.all(np.diff(times) > 0)


@given(
    st.sets(st.integers(6, 50), min_size=1, max_size=5),
    st.lists(st.floats(2, 1e6) | st.floats(-1e6, -2), min_size=5, max_size=5),
)
def test_wrong_timestamps_are_replaced_and_no_other_changes(wrong, offsets):
    timestamps = list(EVEN)
    for index, offset in zip(sorted(wrong), offsets, strict=False):
        timestamps[index] += offset
    times, clock = timed(timestamps)
    np.testing.assert_allclose(times, EVEN, atol=1e-6)
    assert clock.replaced == len(wrong)


@pytest.mark.parametrize("offset", [300, -300, 0.04, -0.04, 0.06, -0.06, -0.02])
@pytest.mark.parametrize("index", [1, 2, 20, 57, 58])
def test_one_wrong_timestamp_is_one_replaced(index, offset):
    timestamps = list(EVEN)
    timestamps[index] += offset
    times, clock = timed(timestamps)
    assert np.abs(np.subtract(times, EVEN)).max() <= 0.04
    assert times[index + 2 :] == EVEN[index + 2 :]
    assert clock.replaced <= 1
    if abs(offset) > 1:
        assert f"frame {index}: {timestamps[index]:.6g} s became {EVEN[index]:.6g} s" in str(
            clock.problem
        )


@pytest.mark.parametrize("index", [0, 59])
@pytest.mark.parametrize("offset", [300, -300])
def test_a_single_first_or_last_frame_is_not_believed(index, offset):
    timestamps = list(EVEN)
    timestamps[index] += offset
    times, clock = timed(timestamps)
    np.testing.assert_allclose(times, EVEN, atol=1e-9)
    assert clock.replaced == 1
    assert clock.moved == pytest.approx(0 if index else -offset)


@pytest.mark.parametrize("gap", [0.1, 2.0, 300.0])
@pytest.mark.parametrize("index", [1, 2, 30, 58])
def test_true_gaps_are_kept(index, gap):
    if index in (1,) and gap > 10:
        pytest.skip("one frame alone")
    timestamps = EVEN[:index] + [time + gap for time in EVEN[index:]]
    times, clock = timed(timestamps)
    assert times == timestamps
    assert clock.problem is None


@pytest.mark.parametrize(
    ("index", "start"), [(5, 0.0), (5, -95443.7), (30, 0.0), (30, 0.9), (30, -95443.7), (58, 0.0)]
)
def test_time_that_starts_again_goes_on(index, start):
    timestamps = EVEN[:index] + [start + time for time in EVEN[: 60 - index]]
    times, clock = timed(timestamps)
    np.testing.assert_allclose(times, EVEN, atol=1e-6)
    assert clock.problem is None


@pytest.mark.parametrize("order", ["IBP", "IBBP", "pyramid", "few"])
@pytest.mark.parametrize("step", [0.04, 0.02])  # by the header, which may be wrong
def test_timestamps_of_decoding_are_sorted(order, step):
    group = {"IBP": [1, 0], "IBBP": [1, 2, 0], "pyramid": [2, 1, 3, 0]}.get(order)
    shown = [0]
    if group is None:
        shown = [*range(20), 21, 20, *range(22, 40), 41, 40, *range(42, 60)]
    while len(shown) < 60:
        shown += [len(shown) + place for place in group]
    timestamps = [EVEN[index] for index in shown[:60] if index < 60]
    times, clock = timed(timestamps, step)
    np.testing.assert_allclose(times, sorted(timestamps), atol=1e-9)
    assert clock.problem is None


def test_without_timestamps_the_header_counts():
    times, clock = timed([None] * 30, step=0.02)
    np.testing.assert_allclose(times, np.arange(30) * 0.02, atol=1e-9)
    assert clock.problem is None


def test_some_missing_timestamps_are_filled_in():
    gone = {0, 7, 8, 30, 59}
    times, clock = timed([None if index in gone else time for index, time in enumerate(EVEN)])
    np.testing.assert_allclose(times, EVEN, atol=1e-9)
    assert clock.problem is None


def test_equal_timestamps_are_told_apart():
    times, clock = timed([3.0] * 30)  # what a muxer leaves that was told no times
    np.testing.assert_allclose(times, 3 + np.arange(30) * 0.04, atol=1e-9)
    assert clock.replaced == 29
    rounded = [*EVEN[:10], EVEN[9] + 1e-9, *EVEN[11:]]
    times, clock = timed(rounded)
    np.testing.assert_allclose(times, EVEN, atol=1e-6)
    assert clock.replaced == 1


def test_frames_are_held_back_only_where_it_helps():
    def held(timestamps):
        pulled, most = 0, 0

        def pull():
            nonlocal pulled
            for time in timestamps:
                pulled += 1
                yield time, None

        for taken, _ in enumerate(Clock(0.04)(pull()), 1):
            most = max(most, pulled - taken)
        return most

    assert held(EVEN) == 1
    assert held([None] * 60) <= 15  # the first only
    assert held([*EVEN[:30], *(time + 60 for time in EVEN[30:])]) == 15
