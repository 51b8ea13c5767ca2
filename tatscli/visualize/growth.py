"""How a policy developed: the same window under the policy of one checkpoint after the other.

A strip is a heat map and the visible tokens, with one column a slice, or `layout.columns` of them.
A png stacks all strips; a film shows them one after the other, so that its time is that of the
training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tatscli.errors import UsageError
from tatscli.video.encode import write_video
from tatscli.visualize.compose import compose, stack
from tatscli.visualize.facts import entropy_words, insight_of, motion_words
from tatscli.visualize.panels import Row, panels_of
from tatscli.visualize.render import (
    Layout,
    caption_of,
    header_of,
    is_sheet,
    slices_shown,
    slices_words,
)
from tatscli.visualize.rows import motion_row, visible_row
from tatscli.visualize.scores import bounds_of, lift_of, probability_row
from tatscli.visualize.text import Picture
from tatscli.visualize.viewer import MaskedWindow
from tatscli.visualize.windows import Window

FPS = 2.0
"""Checkpoints a second, unless the layout says otherwise."""

_MOST_STRIPS = 200
"""In one sheet: PNG encoders refuse pictures much larger, and no one can look at them."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The policy at one checkpoint.

    Attributes:
        step: Optimiser steps of training done.
        results: One a window, with probabilities; all draw with the same noise.
    """

    step: int
    results: list[MaskedWindow]


def refuse_sheet(out: Path, strips: int) -> None:
    """Refuse, before any work, more strips than a png can hold.

    Raises:
        UsageError: If `out` is a sheet and they are too many.
    """
    if is_sheet(out) and strips > _MOST_STRIPS:
        raise UsageError(
            f"`{out}` cannot hold {strips} strips: a sheet has at most {_MOST_STRIPS}",
            hint="raise `--every`, lower `--windows`, or write an mp4 or gif",
        )


def render_growth(
    clip: Path,
    out: Path,
    windows: Sequence[Window],
    snapshots: Sequence[Snapshot],
    layout: Layout,
    grid: tuple[int, int, int],
) -> float | None:
    """Write the picture of a policy's growth; one colour scale serves all its heat maps.

    Args:
        clip: Where the windows come from, for the header.
        out: `.png` for a sheet, another suffix of `SUFFIXES` for a film.
        windows: The windows.
        snapshots: The policies, in the order of training.
        layout: How the picture is made.
        grid: Tokens along time, height and width.

    Returns:
        The frame rate written, None for a png.
    """
    lifts = [
        lift_of(masked.score_N)
        for one in snapshots
        for masked in one.results
        if masked.score_N is not None
    ]
    strips = _Strips(clip, layout, grid, bounds_of(torch.cat(lifts)))
    if is_sheet(out):
        sheets = [strips.sheet(window, place, snapshots) for place, window in enumerate(windows)]
        write_video(out, [stack(sheets)], fps=1)
        return None
    fps = layout.fps or FPS
    write_video(out, strips.film(windows, snapshots), fps=fps)
    return fps


@dataclass(frozen=True, slots=True)
class _Strips:
    """Paints the pages.

    Attributes:
        clip: For the header.
        layout: For the header.
        grid: Tokens along time, height and width.
        bounds: The ends of the colour scale that all heat maps share.
    """

    clip: Path
    layout: Layout
    grid: tuple[int, int, int]
    bounds: tuple[float, float]

    def sheet(self, window: Window, place: int, snapshots: Sequence[Snapshot]) -> Picture:
        """Put the strips of the window at `place` under its frames and their motion."""
        rows = self._frame_rows(window)
        for one in snapshots:
            rows += self._strip(window, one, place)
        return self._compose(window, rows, f"checkpoints shown: {len(snapshots)}")

    def film(self, windows: Sequence[Window], snapshots: Sequence[Snapshot]) -> Iterator[Picture]:
        """Show one strip after the other, window by window."""
        for place, window in enumerate(windows):
            frames, motion = self._frame_rows(window)
            for number, one in enumerate(snapshots, 1):
                words = f"checkpoint {number} of {len(snapshots)}: step {one.step}"
                strip = self._strip(window, one, place)
                yield self._compose(window, [frames, *strip, motion], words)

    @property
    def slices(self) -> list[int]:
        """Which have a column."""
        return slices_shown(self.grid[0], self.layout.columns)

    def _places(self, window: Window) -> list[int]:
        """Return the first frame of each of them, by its place in the window."""
        return [one * (len(window.frames) // self.grid[0]) for one in self.slices]

    def _frame_rows(self, window: Window) -> list[Row]:
        places = self._places(window)
        motion = motion_row(panels_of(window.video_TCHW), window, shown=places)
        return [
            self._shown(Row("input", [], self._video(window))),
            replace(motion, panels_TYX3=motion.panels_TYX3[places]),
        ]

    def _strip(self, window: Window, one: Snapshot, place: int) -> list[Row]:
        masked = one.results[place]
        assert masked.score_N is not None
        insight = insight_of(window, masked, self.grid)
        video = self._video(window)
        heat = probability_row(video, masked.score_N, self.grid, self.bounds)
        shown = visible_row(video, masked.plan, self.grid)
        strip = [
            replace(
                heat,
                label=f"step {one.step} probability",
                notes=[*heat.notes, "same colours for all steps", entropy_words(insight)],
            ),
            replace(
                shown,
                label=f"step {one.step} visible tokens",
                notes=[*shown.notes, *motion_words(insight)],
            ),
        ]
        return [self._shown(row) for row in strip]

    def _shown(self, row: Row) -> Row:
        """Keep the panels that have a column: a sheet may hold hundreds of rows."""
        return replace(row, panels_TYX3=row.panels_TYX3[self.slices])

    def _video(self, window: Window) -> np.ndarray:
        """Return the first frame of each slice as panels."""
        return panels_of(window.video_TCHW[:: len(window.frames) // self.grid[0]])

    def _compose(self, window: Window, rows: list[Row], words: str) -> Picture:
        captions = [caption_of(window, place) for place in self._places(window)]
        *lines, held = header_of(self.clip, self.layout, window)
        left_out = slices_words(self.grid[0], self.layout.columns)
        return compose([*lines, words, *left_out, held], captions, rows, range(len(captions)))
