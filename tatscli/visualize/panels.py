"""What rows are made of: panels, colours, hatching, and values spread over their tokens.

Shapes: T frames, C channels, H and W pixels of the view, Y and X those of a panel: enlarged by the
zoom, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tatscli.visualize.text import draw_text, fit, line_height, text_width

SMALLEST_PANEL = 192
"""Views are enlarged by a whole number until no side of a panel is shorter: words need the room."""

# Greys of the hatching over hidden tokens: no picture looks like it.
HIDDEN = (104, 128)
DROPPED = (40, 64)  # darker: hidden and not predicted either, or not kept
# From low to high: dark violet, magenta, orange, pale yellow; brightness rises all the way.
_HEAT = np.array(
    [(13, 8, 60), (90, 20, 120), (180, 45, 100), (236, 105, 50), (250, 180, 40), (252, 252, 180)]
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A colour scale: what its two ends mean."""

    low: str
    high: str

    def ramp(self, width: int) -> np.ndarray:
        """Return the colours from low to high over mid-grey: (1, width, 3) uint8."""
        return heat(np.linspace(0, 1, width), over=np.array(128))[None]


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled row.

    Attributes:
        label: What the row shows.
        notes: What one must know to read it.
        panels_TYX3: uint8, one panel a frame.
        scale: Its colour scale, if colours mean numbers.
    """

    label: str
    notes: list[str]
    panels_TYX3: np.ndarray
    scale: Scale | None = None


def zoom_of(video_TCHW: Tensor) -> int:
    """Return how many panel pixels a pixel of the view becomes, along each side."""
    return max(1, -(-SMALLEST_PANEL // min(video_TCHW.shape[-2:])))


def heat(value: np.ndarray, *, over: np.ndarray) -> np.ndarray:
    """Lay the colours of values in [0, 1] over a grey picture of 0 to 255: (..., 3) uint8."""
    place = np.clip(value, 0, 1) * (len(_HEAT) - 1)
    colours = [np.interp(place, np.arange(len(_HEAT)), _HEAT[:, c]) for c in range(3)]
    return (0.3 * over[..., None] + 0.7 * np.stack(colours, axis=-1)).astype(np.uint8)


def heat_over(video_TYX3: np.ndarray, share_TYX: np.ndarray) -> np.ndarray:
    """Lay the colours of values over grey pictures, frame by frame: long windows fit in memory."""
    pairs = zip(share_TYX, video_TYX3, strict=True)
    return np.stack([heat(share_YX, over=one.mean(axis=-1)) for share_YX, one in pairs])


def panels_of(video_TCHW: Tensor) -> np.ndarray:
    """Enlarge uint8 frames, pixels staying square and sharp: (T, Y, X, 3)."""
    zoom = zoom_of(video_TCHW)
    frames = video_TCHW.permute(0, 2, 3, 1).numpy()
    return frames.repeat(zoom, axis=1).repeat(zoom, axis=2)


def hatching(video_TYX3: np.ndarray, greys: tuple[int, int] = HIDDEN) -> np.ndarray:
    """Return the pattern of hidden tokens: (Y, X, 1)."""
    diagonal_YX = np.add.outer(*[np.arange(side) for side in video_TYX3.shape[1:3]]) % 6 < 1
    return np.where(diagonal_YX, *greys).astype(np.uint8)[..., None]


def dim(video_TYX3: np.ndarray) -> np.ndarray:
    """Return dark grey pictures to draw upon: (T, Y, X, 3)."""
    grey = (video_TYX3.mean(axis=-1, keepdims=True) * 0.55).astype(np.uint8)
    return grey.repeat(3, axis=-1)


def centre(panel: np.ndarray, text: str) -> None:
    height, width = panel.shape[:2]
    shown, size = fit(text, width)
    left, top = (width - text_width(shown, size)) // 2, (height - line_height(size)) // 2
    draw_text(panel, left, top, shown, colour=(220, 220, 220), size=size)


def spread(value_N: Tensor, grid: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    """Give each panel pixel the value of its token: a tensor of `shape` (T, Y, X)."""
    value = value_N.reshape(grid)
    for axis, length in enumerate(shape):
        value = value.repeat_interleave(length // grid[axis], dim=axis)
    return value
