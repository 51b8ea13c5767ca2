"""Numbers about a window: for labels, and for `--json`.

Shapes: N tokens of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tatscli.masking.insight import mask_insight, visible_per_slice
from tatscli.visualize.viewer import MaskedWindow
from tatscli.visualize.windows import Window

_MOTION = ("motion_share", "motion_lift", "motion_hidden")


def facts_of(window: Window, masked: MaskedWindow, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Return the entry of a window in `--json`.

    Returns:
        `frames`, `times` in seconds, `visible` and `predict` (token indices) and the numbers of
        `insight_of`; `probability` of every token where the mask has a policy, `saliency` of every
        token if the `predict` rule measures one, `error` of each predicted token where there is a
        model.
    """
    facts: dict[str, Any] = {
        "frames": window.frames,
        "times": [round(time, 6) for time in window.times],
        "visible": masked.plan.visible_BK[0].tolist(),
        "predict": masked.plan.predict_BM[0].tolist(),
        **insight_of(window, masked, grid),
    }
    for name, value in (
        ("probability", masked.score_N),
        ("saliency", masked.saliency_N),
        ("error", masked.error_M),
    ):
        if value is not None:
            facts[name] = [float(f"{number:.4g}") for number in value.tolist()]
    return facts


def insight_of(window: Window, masked: MaskedWindow, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Return how the mask treats time and motion in this window.

    Returns:
        `visible_per_slice`: counts. `motion_share`, `motion_lift` and `motion_hidden`: see
        `mask_insight`; None where nothing moves or no motion is known. `entropy` of the policy,
        1 = uniform; None without a policy.
    """
    plan = masked.plan
    found = {
        name: value
        for name, tensor in mask_insight(plan, grid=grid, motion=window.motion).items()
        if math.isfinite(value := tensor.item())
    }
    counts_BT = visible_per_slice(plan.visible_BK, grid[0], grid[1] * grid[2])
    return {
        "visible_per_slice": counts_BT[0].tolist(),
        **{name: _rounded(found.get(name)) for name in _MOTION},
        "entropy": None if masked.score_N is None else _rounded(entropy(masked.score_N)),
    }


def mean_insight(
    windows: Sequence[Window], results: Sequence[MaskedWindow], grid: tuple[int, int, int]
) -> dict[str, Any]:
    """Return the numbers of `insight_of` as means over the windows that have them."""
    found = [insight_of(*both, grid) for both in zip(windows, results, strict=True)]
    means: dict[str, Any] = {}
    for name in ("entropy", *_MOTION):
        values = [one[name] for one in found if one[name] is not None]
        means[name] = _rounded(fmean(values)) if values else None
    slices = zip(*(one["visible_per_slice"] for one in found), strict=True)
    return means | {"visible_per_slice": [_rounded(fmean(counts)) for counts in slices]}


def entropy(score_N: Tensor) -> float:
    """Return the entropy of probabilities that add up to 1, divided by its maximum ln N."""
    nats = torch.special.entr(score_N.double()).sum().item()
    return nats / math.log(score_N.numel())


def motion_words(insight: dict[str, Any]) -> list[str]:
    """Say for a label how much the tokens shown and hidden move."""
    if insight["motion_share"] is None:
        return [hidden_words(insight)]
    return [
        f"motion share {insight['motion_share']:.2f}, chance 0.10",
        f"motion of visible tokens {insight['motion_lift']:.2f} x chance",
        hidden_words(insight),
    ]


def hidden_words(insight: dict[str, Any]) -> str:
    """Say for a label how much the hidden tokens move."""
    if insight["motion_hidden"] is None:
        return "no motion to compare with"
    return f"motion of hidden tokens {insight['motion_hidden']:.2f} x chance"


def entropy_words(insight: dict[str, Any]) -> str:
    """Say for a label how far from uniform the policy is."""
    return f"entropy {insight['entropy']:.3f}, uniform 1"


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)
