"""Figures of a study: scores of its arms as bars, and what was held out along its passes."""

from __future__ import annotations

import statistics
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.studies.tables import results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tests.studies.study import Study

ACROSS = 3  # panels in a row
COLOURS = 10  # of matplotlib's; the lines of further arms are dashed
CURVES = {
    "watch/loss": "held-out loss",
    "probe": "frozen probe, top-1",
    "motion_lift": "motion of what is shown, by that of all",
}


def draw(study: Study, folder: Path) -> list[Path]:
    """Write `scores.svg`, and `curves.svg` where there are any; return what was written."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "tats"  # equal figures are equal files
    known = {arm: cells for arm, cells in results(study, folder).items() if cells}
    if not known:
        return []
    drawn = {"scores": (list(study.scores), lambda ax, name: _bars(ax, study, known, name))}
    points = [
        point for cells in known.values() for cell in cells.values() for point in cell["curve"]
    ]
    keys = [key for key in CURVES if any(key in point for point in points)]
    if keys:
        drawn["curves"] = (keys, lambda ax, key: _curves(ax, known, key))
    written = []
    for stem, (names, one) in drawn.items():
        across = min(len(names), ACROSS)
        down = -(-len(names) // across)
        figure, axes = plt.subplots(
            down, across, figsize=(4.2 * across, 3.2 * down), layout="constrained", squeeze=False
        )
        for ax, name in zip_longest(axes.flat, names):
            if name is None:
                ax.set_axis_off()
            else:
                one(ax, name)
        written.append(folder / f"{stem}.svg")
        figure.savefig(written[-1], metadata={"Date": None})
        plt.close(figure)
    return written


def _bars(ax: Axes, study: Study, known: dict[str, dict[int, dict[str, Any]]], name: str) -> None:
    """Draw the mean of each arm, with the lowest and the highest seed."""
    values = {
        arm: [cell["scores"][name] for cell in cells.values() if name in cell["scores"]]
        for arm, cells in known.items()
    }
    values = {arm: found for arm, found in values.items() if found}
    means = [statistics.mean(found) for found in values.values()]
    below = [mean - min(found) for mean, found in zip(means, values.values(), strict=True)]
    above = [max(found) - mean for mean, found in zip(means, values.values(), strict=True)]
    colours = ["0.55" if arm == study.reference else "tab:blue" for arm in values]
    ax.barh(list(values), means, xerr=[below, above], color=colours, capsize=3)
    ax.invert_yaxis()
    ax.set_xlabel(f"{name}, top-1")


def _curves(ax: Axes, known: dict[str, dict[int, dict[str, Any]]], key: str) -> None:
    """Draw the mean of the seeds along the clips that were seen; an arm has one colour in all
    panels."""
    for number, (arm, cells) in enumerate(known.items()):
        by_views: dict[int, list[float]] = {}
        for cell in cells.values():
            for point in cell["curve"]:
                if key in point:
                    by_views.setdefault(point["views"], []).append(point[key])
        if by_views:
            ax.plot(
                [views / 1000 for views in sorted(by_views)],
                [statistics.mean(by_views[views]) for views in sorted(by_views)],
                label=arm,
                color=f"C{number}",
                linestyle="-" if number < COLOURS else "--",
            )
    ax.set_xlabel("thousands of clips seen in pretraining")
    ax.set_ylabel(CURVES[key])
    ax.legend(fontsize="small")
