"""From a clip to a picture file: windows in, pages out, never more than one window in memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from tatscli.targets.pixels import PixelTarget
from tatscli.video.encode import write_video
from tatscli.visualize.compose import compose, stack
from tatscli.visualize.font import Picture
from tatscli.visualize.panels import Row, rows_of
from tatscli.visualize.sight import Sight, Viewer
from tatscli.visualize.windows import Window, read_windows

_FPS = (1.0, 30.0)  # frame rates a viewer can follow


@dataclass(frozen=True, slots=True)
class Page:
    """How the picture is made.

    Attributes:
        title: What mask it shows, for the header.
        stride: Source frames from one frame of a window to the next.
        fps: Frames per second of mp4 and gif; None follows the clip's own times.
        windows: How many windows to show; None means all, for a png the first.
    """

    title: str
    stride: int
    fps: float | None = None
    windows: int | None = None


Watcher = Callable[[Window, Sight], None]


def render(
    clip: Path, out: Path, viewer: Viewer, page: Page, *, seed: int, watch: Watcher
) -> float | None:
    """Write the picture; its suffix says whether it moves.

    Args:
        clip: A file FFmpeg can read.
        out: `.mp4`, `.mkv`, `.mov` or `.gif`: one picture a frame; `.png`: a sheet with one column
            a slice.
        viewer: Mask and model.
        page: How the picture is made.
        seed: Of the masks.
        watch: Called with every window shown.

    Returns:
        The frame rate written, None for a png.

    Raises:
        DecodeError: The clip cannot be read.
        UsageError: The suffix of `out` is not one of those.
    """
    generator = torch.Generator().manual_seed(seed)
    grid, tubelet = viewer.encoder.grid, viewer.encoder.tubelet
    sheet = is_sheet(out)
    windows = windows_of(clip, viewer, page)
    first = next(windows)
    limit = page.windows or (1 if sheet else None)
    borrowed = _borrows_statistics(viewer)

    def painted() -> Iterator[tuple[Window, list[Row]]]:
        for window in islice(chain([first], windows), limit):
            sight = viewer.look(window, generator)
            watch(window, sight)
            yield window, rows_of(window, sight, grid=grid, statistics=borrowed)

    if sheet:
        slices = range(0, grid[0] * tubelet, tubelet)
        pages = [_page(clip, page, window, rows, list(slices)) for window, rows in painted()]
        write_video(out, [stack(pages)], fps=1)
        return None
    fps = page.fps or _natural_fps(first)
    write_video(out, _frames(clip, page, painted()), fps=fps)
    return fps


def is_sheet(out: Path) -> bool:
    """Tell whether the suffix of `out` asks for a picture that does not move."""
    return out.suffix.lower() == ".png"


def windows_of(clip: Path, viewer: Viewer, page: Page) -> Iterator[Window]:
    """Read a clip as the windows a viewer's encoder takes.

    Raises:
        DecodeError: The clip cannot be read.
    """
    encoder = viewer.encoder
    return read_windows(
        clip,
        frames=encoder.grid[0] * encoder.tubelet,
        stride=page.stride,
        size=encoder.grid[1] * encoder.patch,
        sites=encoder.grid[1:],
    )


def header_of(clip: Path, page: Page, window: Window) -> list[str]:
    """Return the lines above a window's panels."""
    first, last = window.frames[0], window.frames[-1]
    return [
        clip.name,
        f"{page.title}, stride {page.stride}",
        f"window {window.number + 1}: frames {first}-{last}",
        f"last frame held, {window.held} repeats" if window.held else "",
    ]


def caption_of(window: Window, place: int) -> str:
    """Return what stands above the panels of one frame."""
    return f"frame {window.frames[place]}, {window.times[place]:.2f} s"


def _frames(
    clip: Path, page: Page, painted: Iterator[tuple[Window, list[Row]]]
) -> Iterator[Picture]:
    for window, rows in painted:
        for place in range(len(window.frames)):
            yield _page(clip, page, window, rows, [place])


def _page(clip: Path, page: Page, window: Window, rows: list[Row], columns: list[int]) -> Picture:
    captions = [caption_of(window, place) for place in columns]
    return compose(header_of(clip, page, window), captions, rows, columns)


def _natural_fps(window: Window) -> float:
    """Return the rate at which the window's frames follow each other, within what eyes can use."""
    gaps = [gap for gap in np.diff(window.times).tolist() if gap > 0]
    rate = 1 / statistics.median(gaps) if gaps else 8.0
    return min(max(rate, _FPS[0]), _FPS[1])


def _borrows_statistics(viewer: Viewer) -> bool:
    place = viewer.pixel_target
    target = viewer.targets[place] if place is not None else None
    return isinstance(target, PixelTarget) and target.normalize
