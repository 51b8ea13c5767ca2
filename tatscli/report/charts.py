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
"""Of a curve: a longer one is drawn as means of equal stretches."""
_SCORES = "top-1 on videos that are not trained on"
_MAIN = ("loss", _SCORES, "learning rate", "grad_norm", "seconds of a step")
_NAMED = 60  # classes whose names fit beside a confusion matrix
_PLACES = ("step", "epoch", "wall")  # where a line stands, in steps, passes and seconds
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
        title: What is drawn.
        curves: By name, values of each line of the log that has them: (step, value).
        main: Whether everyone looks at it.
    """

    title: str
    curves: Mapping[str, Sequence[tuple[int, float]]]
    main: bool = False


def group_curves(lines: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], dict[str, float]]:
    """Sort the numbers of a `metrics.jsonl` into charts: what is alike shares one.

    The charts that everyone looks at come first: the `main` ones.

    Returns:
        The charts, and the numbers that were the same in every line, which need none.
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
    """Draw a confusion matrix, rows true and columns predicted, each row as shares of its videos.

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
    """Draw without a display, and return the `<svg>` element alone."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "`tats report` draws with matplotlib, which is not installed",
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
    """Return the chart that a number of the log belongs to."""
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
    """Return steps and values; of a long curve the means of equal stretches."""
    step, value = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    if len(step) <= MOST_POINTS:
        return step, value
    parts = np.array_split(np.arange(len(step)), MOST_POINTS)
    return tuple(np.array([one[part].mean() for part in parts]) for one in (step, value))  # type: ignore[return-value]
