from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatscli.evaluation.significance import holm, mcnemar, mean_interval, student_quantile

stats = pytest.importorskip("scipy.stats")


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test_of_the_discordant_videos(first: int, second: int) -> None:
    exact, middle = mcnemar(first, second)
    together, fewer = first + second, min(first, second)
    expected = stats.binomtest(first, together).pvalue if together else 1.0
    assert exact == pytest.approx(expected, rel=1e-9)
    below = stats.binom.cdf(fewer - 1, together, 0.5) if fewer else 0.0
    assert middle == pytest.approx(2 * below + stats.binom.pmf(fewer, together, 0.5), rel=1e-9)
    assert mcnemar(second, first) == (exact, middle)


def test_mcnemar_stays_exact_where_floats_end() -> None:
    assert mcnemar(0, 3000) == (2 / 2**3000, 1 / 2**3000) == (0.0, 0.0)
    assert mcnemar(9000, 9000)[0] == 1.0
    assert mcnemar(0, 0) == (1.0, 1.0)


def rejected(values: list[float], level: float) -> set[int]:
    """Holm's procedure: from the smallest p on, until one is above level / (how many are left)."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    found: set[int] = set()
    for rank, place in enumerate(order):
        if values[place] > level / (len(values) - rank):
            break
        found.add(place)
    return found


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8))
def test_corrected_values_are_the_levels_at_which_holms_procedure_rejects(
    values: list[float],
) -> None:
    corrected = holm(values)
    assert all(one >= value for one, value in zip(corrected, values, strict=True))
    for level in {*corrected, 0.05, 0.3}:
        for near in (level * (1 - 1e-9), level * (1 + 1e-9)):
            if near < 1:
                assert rejected(values, near) == {
                    place for place, one in enumerate(corrected) if one <= near
                }
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.integers(1, 60), st.floats(0.51, 0.9995))
def test_students_quantiles(freedom: int, share: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-8)


def test_the_interval_of_a_mean() -> None:
    values = [0.61, 0.64, 0.66]
    mean, deviation, interval = mean_interval(values)
    assert (mean, deviation) == (statistics.fmean(values), statistics.stdev(values))
    expected = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(values))
    assert interval == pytest.approx(list(expected))
    assert mean_interval([0.5]) == (0.5, None, None)
