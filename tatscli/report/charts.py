"""Charts of a report as SVG text: curves over steps, and the confusion of classes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tatscli.errors import UsageError

MOST_POINTS = 400
"""Points of a curve; a longer one is drawn as means of equal parts."""
_SCORES = "top-1 on held-out videos"
_MAIN = ("loss", _SCORES, "learning rate", "grad_norm", "seconds of a step")
_NAMED = 60  # classes whose names fit beside a confusion matrix
_PLACES = ("step", "epoch", "wall")  # position of a line, in steps, passes and seconds
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and weighs less
    "svg.hashsalt": "tats",  # the same figures give the same file
    "text.parse_math": False,  # class names may hold dollars
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves that share axes.

    Attributes:
        title: Its title.
        curves: By name, (step, value) of each line of the log that has it.
        main: Whether it is among the most important ones.
    """

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    main: bool = False


def group_curves(lines: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], dict[str, float]]:
    """Group the numbers of a `metrics.jsonl` into charts of related numbers, `main` ones first.

    Returns:
        The charts, and the numbers that are the same in every line, which need no chart.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in _PLACES and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((int(line["step"]), float(value)))
    charts: dict[str, dict[str, list[tuple[int, float]]]] = {}
    constant: dict[str, float] = {}
    for name in sorted(curves, key=lambda one: (_rank(one), one)):
        values = {value for _, value in curves[name]}
        if len(values) == 1 and len(curves[name]) > 1 and _chart_of(name) not in _MAIN:
            constant[name] = values.pop()
        else:
            charts.setdefault(_chart_of(name), {})[name] = curves[name]
    return [Chart(title, found, title in _MAIN) for title, found in charts.items()], constant


def draw_curves(chart: Chart) -> str:
    """Draw a chart: SVG.

    Raises:
        UsageError: If matplotlib is not installed.
    """

    def paint(axes: Any) -> None:
        for name, points in chart.curves.items():
            step, value = _thinned(points)
            # A single point has no line.
            axes.plot(step, value, linewidth=1.4, marker="o" if len(step) < 3 else "", label=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("step")
        axes.set_title(chart.title, loc="left")
        if len(chart.curves) > 1:
            columns = min(3, len(chart.curves))
            axes.figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=columns)

    return _figure(paint, (4.0, 2.5 + 0.18 * (len(chart.curves) // 3)))


def draw_confusion(confusion_LL: np.ndarray, names: Sequence[str]) -> str:
    """Draw a confusion matrix: rows are true classes, columns predicted, each row sums to 1.

    Raises:
        UsageError: If matplotlib is not installed.
    """
    counts_L1 = confusion_LL.sum(axis=1, keepdims=True)
    share_LL = confusion_LL / np.maximum(counts_L1, 1)
    classes = len(names)
    side = min(9.0, 2.2 + 0.16 * classes)

    def paint(axes: Any) -> None:
        image = axes.imshow(share_LL, cmap="magma_r", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.figure.colorbar(image, ax=axes, fraction=0.04, label="share of the class's videos")
        if classes <= _NAMED:
            size = 8 if classes <= 30 else 6
            axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
            axes.set_yticks(range(classes), names, fontsize=size)

    return _figure(paint, (side + 1, side))


def _figure(paint: Callable[[Any], None], size: tuple[float, float]) -> str:
    """Draw without a display, and return the `<svg>` element."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "`tats report` needs matplotlib, which is not installed",
            hint="pip install 'tats[report]'",
        ) from error
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _chart_of(name: str) -> str:
    """Return the chart of a number of the log."""
    if name.endswith("top1"):
        return _SCORES
    name = name.removeprefix("watch/")
    if name in ("lr", "sampler_lr"):
        return "learning rate"
    if name.endswith("_seconds"):
        return "seconds of a step"
    return re.sub(r"_(\d+|min|max)$", "", name)


def _rank(name: str) -> int:
    chart = _chart_of(name)
    return _MAIN.index(chart) if chart in _MAIN else len(_MAIN)


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values; for a long curve the means of equal parts."""
    step, value = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if len(step) <= MOST_POINTS:
        return step, value
    parts = np.array_split(np.arange(len(step)), MOST_POINTS)
    return tuple(np.array([one[part].mean() for part in parts]) for one in (step, value))  # type: ignore[return-value]
