"""Bootstrap intervals: how much a score depends on which videos are in the test set.

Percentile intervals (Efron and Tibshirani 1993, chapter 13): as many videos as there are are drawn
with replacement, and each draw is scored. Segments of one file are correlated, so files are drawn,
each with all its segments. Shapes: R videos, U files, L classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95

Array = np.ndarray[Any, Any]


def accuracy_intervals(
    label_R: Array, right_R: Array, source_R: Array, *, seed: int, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Return 95 % intervals of top-1 and mean-class accuracy.

    Args:
        label_R: Class of each video.
        right_R: Whether it was classified correctly.
        source_R: Number of the file it was cut from.
        seed: Seed of the draws.
        resamples: Number of draws.

    Returns:
        `top1_interval` and `mean_class_interval`, each `[low, high]`, or None if there is only one
        file; and `bootstrap`: `method`, `level`, `resamples`, `seed`, `unit`, which is `video`, or
        `file` where a file has several segments, and `units`, their number.
    """
    files = len(np.unique(source_R))
    top1, mean_class = [], []
    for weight_R in drawn_weights(source_R, seed=seed, resamples=resamples if files > 1 else 0):
        count_L = np.bincount(label_R, weights=weight_R)
        hits_L = np.bincount(label_R, weights=weight_R * right_R)
        there_L = count_L > 0
        top1.append(hits_L.sum() / count_L.sum())
        mean_class.append((hits_L[there_L] / count_L[there_L]).mean())
    return {
        "top1_interval": percentile_interval(top1),
        "mean_class_interval": percentile_interval(mean_class),
        "bootstrap": {
            "method": "percentile",
            "level": LEVEL,
            "resamples": resamples,
            "seed": seed,
            "unit": "video" if files == len(source_R) else "file",
            "units": files,
        },
    }


def difference_interval(
    right_R: Array, other_R: Array, source_R: Array, *, seed: int, resamples: int = RESAMPLES
) -> list[float] | None:
    """Return the 95 % interval of the difference in top-1 between two classifiers.

    Arguments are those of `accuracy_intervals`; the difference is the other's top-1 minus the
    first's, on the same draws.
    """
    gain_R = other_R.astype(float) - right_R
    files = len(np.unique(source_R))
    draws = drawn_weights(source_R, seed=seed, resamples=resamples if files > 1 else 0)
    return percentile_interval([weight_R @ gain_R / weight_R.sum() for weight_R in draws])


def drawn_weights(source_R: Array, *, seed: int, resamples: int) -> Iterator[Array]:
    """Yield how often each video occurs in a draw: float64 (R)."""
    _, place_R = np.unique(source_R, return_inverse=True)
    files = int(place_R.max()) + 1
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn_U = np.bincount(generator.integers(0, files, files), minlength=files)
        yield drawn_U[place_R].astype(float)


def percentile_interval(values: list[float]) -> list[float] | None:
    """Return the middle 95 % of the draws; None without draws."""
    if not values:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
