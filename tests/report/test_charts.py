"""Charts: what shares one, and that their text cannot break out of the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tatscli.report.charts import MOST_POINTS, Chart, draw_confusion, draw_curves, group_curves

LINES = [
    {"step": 1, "epoch": 0.5, "loss": 2.0, "loss/pixels": 1.0, "lr": 0.1, "skipped": 0.0},
    {"step": 2, "epoch": 1.0, "loss": 1.0, "loss/pixels": None, "lr": 0.2, "skipped": 0.0},
    {"step": 2, "epoch": 1.0, "val_top1": 0.5, "watch/loss": 1.5, "watch/loss/pixels": 1.5},
    {"step": 3, "visible_slice_0": 3, "visible_slice_1": 4, "visible_slice_max": 5},
]


def test_numbers_of_one_kind_share_a_chart_and_the_loss_comes_first() -> None:
    found, constant = group_curves(LINES)
    charts = {chart.title: dict(chart.curves) for chart in found}
    assert next(iter(charts)) == "loss"
    assert charts["loss"] == {"loss": [(1, 2.0), (2, 1.0)], "watch/loss": [(2, 1.5)]}
    assert charts["loss/pixels"] == {  # null is no number
        "loss/pixels": [(1, 1.0)],
        "watch/loss/pixels": [(2, 1.5)],
    }
    assert set(charts["visible_slice"]) == {f"visible_slice_{one}" for one in (0, 1, "max")}
    assert charts["top-1 on held-out videos"] == {"val_top1": [(2, 0.5)]}
    assert not {"step", "epoch"} & {name for curves in charts.values() for name in curves}
    assert constant == {"skipped": 0.0}
    main = [chart.title for chart in found if chart.main]
    assert main == ["loss", "top-1 on held-out videos", "learning rate"]


def test_a_long_curve_is_drawn_as_means_of_equal_stretches() -> None:
    points = [(step, float(step % 2)) for step in range(10 * MOST_POINTS)]
    drawn = draw_curves(Chart("noise", {"noise": points}))
    (line,) = re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]+)"[^>]*stroke-width: 1.4', drawn)
    places = re.findall(r"[ML] [\d.]+ ([\d.]+)", line)
    assert len(places) <= MOST_POINTS
    assert len(set(places)) == 1  # every stretch has as many ones as zeros


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "costs $5 & $6", "a_{b}^c"])
def test_names_are_text_whatever_they_hold(name: str) -> None:
    svg = draw_confusion(np.array([[1, 0], [0, 1]]), [name, "other"])
    assert "<script" not in svg
    assert name in "".join(ElementTree.fromstring(svg).itertext())


def test_a_row_of_the_confusion_is_a_share_and_a_class_without_videos_is_white() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    assert draw_confusion(confusion, ["a", "b", "c"]) == draw_confusion(
        confusion * [[5], [1], [7]], ["a", "b", "c"]
    )


def test_the_same_numbers_give_the_same_chart() -> None:
    first, second = (draw_curves(group_curves(LINES)[0][0]) for _ in range(2))
    assert first == second
