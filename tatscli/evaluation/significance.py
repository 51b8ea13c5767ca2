"""Whether one classifier is better than another, and confidence intervals over seeds.

Only the standard library is used: integers of any size keep the exact test exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def mcnemar(only_first: int, only_second: int) -> tuple[float, float]:
    """Return McNemar's exact two-sided p of two classifiers on the same videos, and its mid-p.

    If both are equally good, each video that only one classifies correctly is a fair coin toss. The
    exact p is conservative: it falls below 0.05 in fewer than 5 % of such cases. The mid-p
    (Fagerland et al. 2013, doi 10.1186/1471-2288-13-91) gives the observed outcome half weight and
    is closer to 5 %.

    Args:
        only_first: Videos that only the first classifies correctly.
        only_second: Videos that only the second classifies correctly.
    """
    together, fewer = only_first + only_second, min(only_first, only_second)
    ways, here = 0, 1  # outcomes up to `fewer`, and those of exactly k
    for k in range(fewer + 1):
        ways += here
        last, here = here, here * (together - k) // (k + 1)
    everything = 2**together
    exact = min(everything, 2 * ways) / everything
    return exact, (2 * ways - last) / everything


def holm(values: Sequence[float]) -> list[float]:
    """Return p values corrected for the number of comparisons (Holm 1979)."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = highest
    return corrected


def mean_interval(
    values: Sequence[float], level: float = 0.95
) -> tuple[float, float | None, list[float] | None]:
    """Return the mean, the standard deviation (n - 1) and Student's interval of the mean.

    Standard deviation and interval are None for a single value. The interval assumes a normal
    distribution.
    """
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    deviation = stdev(values)
    half = student_quantile((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return mean, deviation, [mean - half, mean + half]


def student_quantile(share: float, freedom: int) -> float:
    """Return the quantile of Student's t distribution for a share above one half."""
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _student_below(value: float, freedom: int) -> float:
    """Return the CDF of Student's t distribution for a whole number of degrees of freedom, by the
    finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(value, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        total, term = 0.0, cosine
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine**2 * (2 * k) / (2 * k + 1)
        inside = 2 / math.pi * (angle + sine * total)
    else:
        total, term = 0.0, 1.0
        for k in range(1, freedom // 2 + 1):
            total += term
            term *= cosine**2 * (2 * k - 1) / (2 * k)
        inside = sine * total
    return (1 + inside) / 2
