"""From a clip to a picture file, one window at a time."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from tatscli.data.clip import ClipForm
from tatscli.draws import Draws
from tatscli.recipe import schema
from tatscli.video.encode import write_video
from tatscli.visualize.compose import beside, compose, stack
from tatscli.visualize.panels import Row
from tatscli.visualize.rows import rows_of
from tatscli.visualize.text import Picture
from tatscli.visualize.viewer import MaskedWindow, Viewer
from tatscli.visualize.windows import Window, WindowReader

COLUMNS = 16
"""Columns of a png unless the layout says otherwise: more would be too wide to view."""
_FPS = (1.0, 30.0)  # frame rates a viewer can follow


@dataclass(frozen=True, slots=True)
class Layout:
    """How the picture is made.

    Attributes:
        title: What mask it shows, for the header.
        reader: Which windows are shown.
        fps: Frames per second of mp4 and gif; None follows the clip's own times.
        windows: How many windows to show; None means all there are, for a png the first.
        columns: How many slices a png shows at most, evenly spaced from the first to the last.
        tallest: How many rows of a film stand under each other; more begin another column.
    """

    title: str
    reader: WindowReader
    fps: float | None = None
    windows: int | None = None
    columns: int = COLUMNS
    tallest: int = 6


Watcher = Callable[[Window, MaskedWindow], None]
Painter = Callable[[Window], list[Row]]


def render(
    clip: Path, out: Path, viewer: Viewer, layout: Layout, *, seed: int, watch: Watcher
) -> float | None:
    """Write the picture of one mask: a still picture or a film, by its suffix.

    Args:
        clip: A file FFmpeg can read.
        out: See `write_picture`.
        viewer: Mask and model.
        layout: How the picture is made.
        seed: Of the masks.
        watch: Called with every window shown.

    Returns:
        The frame rate written, None for a png.

    Raises:
        DecodeError: The clip cannot be read.
        UsageError: The suffix of `out` is unknown.
    """
    draws = Draws(seed)
    shown = places_shown(out, viewer.system.form, layout)

    def paint(window: Window) -> list[Row]:
        masked = viewer.mask(window, draws)
        watch(window, masked)
        return rows_seen(viewer, window, masked, shown)

    return write_picture(clip, out, viewer.system.form, layout, paint)


def rows_seen(
    viewer: Viewer, window: Window, masked: MaskedWindow, shown: Collection[int]
) -> list[Row]:
    """Paint what a viewer sees of a window; `shown` are the places of the frames that will be."""
    target = viewer.code_target
    return rows_of(
        window,
        masked,
        grid=viewer.system.form.grid,
        statistics=viewer.borrows_statistics,
        chosen="" if target is None else target.chosen,
        outlined=viewer.system.masker.needs_motion,
        shown=shown,
    )


def write_picture(
    clip: Path, out: Path, form: ClipForm, layout: Layout, paint: Painter
) -> float | None:
    """Paint one window after the other and write the picture.

    Args:
        clip: A file FFmpeg can read.
        out: `.mp4`, `.mkv`, `.mov` or `.gif`: one picture a frame; `.png`: a sheet with one column
            a slice, or `layout.columns` of them.
        form: Says what windows are like.
        layout: How the picture is made.
        paint: Gives the rows of a window; called once for each, in order.

    Returns:
        The frame rate written, None for a png.
    """
    sheet = is_sheet(out)
    windows = windows_of(clip, form, layout)
    first = next(windows)
    limit = layout.windows or (1 if sheet else None)
    painted = ((window, paint(window)) for window in islice(chain([first], windows), limit))
    if sheet:
        places = places_shown(out, form, layout)
        words = slices_words(form.grid[0], layout.columns)
        pages = [
            compose(
                _header(clip, layout, window, words),
                [caption_of(window, place) for place in places],
                rows,
                places,
            )
            for window, rows in painted
        ]
        write_video(out, [stack(pages)], fps=1)
        return None
    fps = layout.fps or _natural_fps(first)
    write_video(out, _frames(clip, layout, painted), fps=fps)
    return fps


def is_sheet(out: Path) -> bool:
    """Tell whether the suffix of `out` means a still picture."""
    return out.suffix.lower() == ".png"


def places_shown(out: Path, form: ClipForm, layout: Layout) -> list[int]:
    """Return which frames of a window the picture shows, by their place: a film all of them, a
    sheet the first of each slice that has a column."""
    if not is_sheet(out):
        return list(range(form.grid[0] * form.tubelet))
    return [one * form.tubelet for one in slices_shown(form.grid[0], layout.columns)]


def slices_shown(slices: int, columns: int) -> list[int]:
    """Return which slices a png shows: all, or `columns` of them, evenly spaced."""
    if slices <= columns:
        return list(range(slices))
    gaps = max(columns - 1, 1)
    return [(2 * one * (slices - 1) + gaps) // (2 * gaps) for one in range(columns)]


def slices_words(slices: int, columns: int) -> list[str]:
    """Return the line of a sheet's header that says which slices it shows, if it leaves any out."""
    shown = slices_shown(slices, columns)
    if len(shown) == slices:
        return []
    numbers = ", ".join(str(one + 1) for one in shown)
    return [f"{len(shown)} of {slices} slices: {numbers}"]


def windows_of(clip: Path, form: ClipForm, layout: Layout) -> Iterator[Window]:
    """Read a clip as the windows a model takes.

    Raises:
        DataError: The clip cannot be read.
    """
    return layout.reader.read(clip, grid=form.grid[1:], count=layout.windows or 1)


def mask_title(mask: schema.Mask) -> str:
    """Name a mask for the header of a picture."""
    if isinstance(mask, schema.ScheduleMask):
        return f"schedule mask as it ends: {mask.to.kind}, ratio {mask.ratio:g}"
    return f"{mask.kind} mask, ratio {mask.ratio:g}"


def header_of(clip: Path, layout: Layout, window: Window) -> list[str]:
    """Return the lines above a window's panels."""
    frames, times = window.frames, window.times
    return [
        clip.name,
        f"{layout.title}, {layout.reader.words}",
        f"window {window.number + 1}: frames {min(frames)}-{max(frames)}, "
        f"{min(times):.2f}-{max(times):.2f} s",
        f"last frame held, {window.held} repeats" if window.held else "",
    ]


def _header(clip: Path, layout: Layout, window: Window, words: list[str]) -> list[str]:
    *lines, held = header_of(clip, layout, window)
    return [*lines, *words, held]


def caption_of(window: Window, place: int) -> str:
    """Return what stands above the panels of one frame."""
    return caption(window.frames[place], window.times[place])


def caption(frame: int, time: float) -> str:
    """Name a frame of a video and when it is shown, in seconds."""
    return f"frame {frame}, {time:.2f} s"


def _frames(
    clip: Path, layout: Layout, painted: Iterator[tuple[Window, list[Row]]]
) -> Iterator[Picture]:
    for window, rows in painted:
        columns = -(-len(rows) // layout.tallest)
        high = -(-len(rows) // columns)
        parts = [rows[start : start + high] for start in range(0, len(rows), high)]
        head = header_of(clip, layout, window)
        heads = [head] + [[""] * len(head)] * (len(parts) - 1)
        for place in range(len(window.frames)):
            caption = [caption_of(window, place)]
            both = zip(heads, parts, strict=True)
            yield beside([compose(lines, caption, part, [place]) for lines, part in both])


def _natural_fps(window: Window) -> float:
    """Return the rate at which the window's frames follow each other, within what eyes can use."""
    gaps = [gap for gap in np.diff(window.times).tolist() if gap > 0]
    rate = 1 / statistics.median(gaps) if gaps else 8.0
    return min(max(rate, _FPS[0]), _FPS[1])
