"""The rows of the picture: input, masked, reconstruction, sampler probability, motion.

Shapes: T frames, C channels, S side of the view, Z = S * zoom side of a panel, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.arrows import GAIN, draw_arrows
from tatscli.visualize.font import draw_text, fitting_scale, text_width
from tatscli.visualize.sight import Sight
from tatscli.visualize.windows import Window

SMALLEST_PANEL = 192
"""Views are enlarged by a whole number until a panel has this side: captions need the room."""

_HIDDEN = (104, 128)  # greys of the hatching over hidden tokens: no picture looks like it
_ARROW = (255, 214, 60)
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
        panels_TZZ3: uint8, one panel a frame.
        scale: Its colour scale, if colours mean numbers.
    """

    label: str
    notes: list[str]
    panels_TZZ3: np.ndarray
    scale: Scale | None = None


def rows_of(
    window: Window, sight: Sight, *, grid: tuple[int, int, int], statistics: bool
) -> list[Row]:
    """Paint every row there is something to show for.

    Args:
        window: The frames.
        sight: What mask and model make of them.
        grid: Tokens along time, height and width.
        statistics: Whether the reconstruction borrows each patch's mean and deviation.
    """
    zoom = zoom_of(window.video_TCHW.shape[-1])
    video = _panels(window.video_TCHW, zoom)
    rows = [Row("input", [], video), _masked(video, sight.plan, grid)]
    if sight.reconstruction_CTHW is not None:
        painted = sight.reconstruction_CTHW.transpose(0, 1).clamp(0, 1).mul(255).round()
        notes = ["predicted patches among the visible ones of the input"]
        if statistics:
            notes.append("patch mean and deviation taken from the original")
        rows.append(Row("reconstruction", notes, _panels(painted.to(torch.uint8), zoom)))
    if sight.score_N is not None:
        rows.append(_probability(video, sight.score_N, grid))
    rows.append(_motion(video, window, zoom))
    return rows


def zoom_of(size: int) -> int:
    """Return how many panel pixels a pixel of the view becomes, along each side."""
    return max(1, -(-SMALLEST_PANEL // size))


def heat(value: np.ndarray, *, over: np.ndarray) -> np.ndarray:
    """Lay the colours of values in [0, 1] over a grey picture of 0 to 255: (..., 3) uint8."""
    place = np.clip(value, 0, 1) * (len(_HEAT) - 1)
    colours = [np.interp(place, np.arange(len(_HEAT)), _HEAT[:, c]) for c in range(3)]
    return (0.3 * over[..., None] + 0.7 * np.stack(colours, axis=-1)).astype(np.uint8)


def _panels(video_TCHW: Tensor, zoom: int) -> np.ndarray:
    """Enlarge uint8 frames, pixels staying square and sharp: (T, Z, Z, 3)."""
    frames = video_TCHW.permute(0, 2, 3, 1).numpy()
    return frames.repeat(zoom, axis=1).repeat(zoom, axis=2)


def _masked(video_TZZ3: np.ndarray, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    tokens = grid[0] * grid[1] * grid[2]
    hidden_TZZ = _spread(plan.hidden_BN(tokens)[0].cpu(), grid, video_TZZ3.shape[:3]).numpy()
    diagonal_ZZ = np.add.outer(*[np.arange(side) for side in video_TZZ3.shape[1:3]]) % 6 < 1
    hatching_ZZ1 = np.where(diagonal_ZZ, *_HIDDEN).astype(np.uint8)[..., None]
    shown_TZZ3 = np.where(hidden_TZZ[..., None], hatching_ZZ1, video_TZZ3)
    seen, guessed = plan.visible_BK.shape[1], plan.predict_BM.shape[1]
    notes = [f"grey is hidden: {seen} of {tokens} tokens visible, {guessed} to predict"]
    return Row("masked", notes, shown_TZZ3)


def _probability(video_TZZ3: np.ndarray, score_N: Tensor, grid: tuple[int, int, int]) -> Row:
    """Lay the probabilities, as multiples of their mean, over a grey picture."""
    lift_N = score_N / score_N.mean()
    # At least 5 % around the mean, lest rounding look like structure.
    low, high = min(0.95, lift_N.min().item()), max(1.05, lift_N.max().item())
    lift_TZZ = _spread((lift_N - low) / (high - low), grid, video_TZZ3.shape[:3]).numpy()
    blend = heat(lift_TZZ, over=video_TZZ3.mean(axis=-1))
    notes = ["of being drawn first, as a multiple of chance"]
    return Row("sampler probability", notes, blend, Scale(f"{low:.2f}x", f"{high:.2f}x"))


def _motion(video_TZZ3: np.ndarray, window: Window, zoom: int) -> Row:
    """Draw the codec's vectors over a dim grey picture."""
    grey = (video_TZZ3.mean(axis=-1, keepdims=True) * 0.55).astype(np.uint8)
    panels = grey.repeat(3, axis=-1)
    field_Thw2 = window.motion.field_BThw2[0].numpy()
    valid_T = window.motion.valid_BT[0].tolist()
    real = len(panels) - window.held
    for place, panel in enumerate(panels):
        if valid_T[place]:
            draw_arrows(panel, field_Thw2[place], zoom=zoom, colour=_ARROW)
        else:
            _centre(panel, "no vectors" if place < real else "held frame")
    notes = [f"codec vectors, drawn {GAIN:g} x as long"]
    return Row("motion", notes, panels)


def _centre(panel: np.ndarray, text: str) -> None:
    side = panel.shape[0]
    scale = fitting_scale(text, side)
    left = (side - text_width(text, scale)) // 2
    draw_text(panel, left, side // 2 - 4 * scale, text, colour=(220, 220, 220), scale=scale)


def _spread(value_N: Tensor, grid: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    """Give each panel pixel the value of its token: a tensor of `shape` (T, Z, Z)."""
    value = value_N.reshape(grid)
    for axis, length in enumerate(shape):
        value = value.repeat_interleave(length // grid[axis], dim=axis)
    return value
