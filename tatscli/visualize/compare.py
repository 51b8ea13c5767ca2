"""Several masks over the same frames, one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tatscli.draws import Draws
from tatscli.visualize.facts import hidden_words, insight_of
from tatscli.visualize.panels import Row, panels_of
from tatscli.visualize.render import Layout, places_shown, write_picture
from tatscli.visualize.rows import motion_row, visible_row
from tatscli.visualize.viewer import MaskedWindow, Viewer
from tatscli.visualize.windows import Window


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the masks compared.

    Attributes:
        label: Names its row.
        viewer: Of this mask; all candidates share an encoder.
    """

    label: str
    viewer: Viewer


Watcher = Callable[[Window, Sequence[MaskedWindow]], None]


def render_comparison(
    clip: Path,
    out: Path,
    candidates: Sequence[Candidate],
    layout: Layout,
    *,
    seed: int,
    watch: Watcher,
) -> float | None:
    """Write the picture: the input, the visible tokens of each mask, the motion.

    Every mask has draws of its own, all with the same seed, so that a row is what the mask gives by
    itself.

    Args:
        clip: A file FFmpeg can read.
        out: See `write_picture`.
        candidates: What is compared, from top to bottom.
        layout: How the picture is made.
        seed: Of the masks.
        watch: Called with every window shown and its results, in the candidates' order.

    Returns:
        The frame rate written, None for a png.

    Raises:
        DecodeError: The clip cannot be read.
        UsageError: The suffix of `out` is unknown.
    """
    form = candidates[0].viewer.system.form
    shown = places_shown(out, form, layout)
    streams = [Draws(seed) for _ in candidates]

    def paint(window: Window) -> list[Row]:
        results = [
            candidate.viewer.mask(window, draws)
            for candidate, draws in zip(candidates, streams, strict=True)
        ]
        watch(window, results)
        return _rows(window, candidates, results, shown)

    return write_picture(clip, out, form, layout, paint)


def _rows(
    window: Window,
    candidates: Sequence[Candidate],
    results: Sequence[MaskedWindow],
    shown: list[int],
) -> list[Row]:
    video = panels_of(window.video_TCHW)
    rows = [Row("input", [], video)]
    for candidate, masked in zip(candidates, results, strict=True):
        grid = candidate.viewer.system.form.grid
        row = visible_row(video, masked.plan, grid)
        words = hidden_words(insight_of(window, masked, grid))
        rows.append(replace(row, label=candidate.label, notes=[*row.notes, words]))
    return [*rows, motion_row(video, window, shown=shown)]
