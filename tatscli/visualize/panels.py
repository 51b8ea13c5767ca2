"""The rows: input, sampler probability, visible tokens, reconstruction, error, motion.

Shapes: T frames, C channels, H and W pixels of the view, Y and X those of a panel: enlarged by the
zoom, N tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.arrows import LONGEST, draw_arrows
from tatscli.visualize.facts import entropy_words, insight_of, motion_words
from tatscli.visualize.sight import Sight
from tatscli.visualize.text import draw_text, fit, line_height, text_width
from tatscli.visualize.windows import Window

SMALLEST_PANEL = 192
"""Views are enlarged by a whole number until no side of a panel is shorter: words need the room."""

# Greys of the hatching over hidden tokens: no picture looks like it.
_HIDDEN = (104, 128)
_DROPPED = (40, 64)  # hidden and not predicted either
_ARROW = (255, 214, 60)
_BORROWED = (255, 240, 190)
_OUTLINE = (90, 220, 255)
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


def rows_of(
    window: Window,
    sight: Sight,
    *,
    grid: tuple[int, int, int],
    statistics: bool,
    outlined: bool = False,
    every: int = 1,
) -> list[Row]:
    """Paint every row there is something to show for.

    Args:
        window: The frames.
        sight: What mask and model make of them.
        grid: Tokens along time, height and width.
        statistics: Whether the reconstruction borrows each patch's mean and deviation.
        outlined: Whether to draw the border of what is hidden into the motion row.
        every: One frame of so many will be shown.
    """
    insight = insight_of(window, sight, grid)
    video = panels_of(window.video_TCHW)
    rows = [Row("input", [], video)]
    if sight.score_N is not None:
        bounds = bounds_of(lift_of(sight.score_N))
        row = probability_row(video, sight.score_N, grid, bounds)
        rows.append(replace(row, notes=[*row.notes, entropy_words(insight)]))
    shown = visible_row(video, sight.plan, grid)
    rows.append(replace(shown, notes=[*shown.notes, *motion_words(insight)]))
    if sight.reconstruction_CTHW is not None:
        painted = sight.reconstruction_CTHW.transpose(0, 1).clamp(0, 1).mul(255).round()
        notes = ["predicted patches among the visible ones of the input"]
        if statistics:
            notes.append("patch mean and deviation taken from the original")
        rows.append(Row("reconstruction", notes, panels_of(painted.to(torch.uint8))))
    if sight.error_M is not None:
        rows.append(_error_row(video, sight.plan, sight.error_M, grid))
    motion = motion_row(video, window, every=every)
    rows.append(outline(motion, sight.plan, grid) if outlined else motion)
    return rows


def zoom_of(video_TCHW: Tensor) -> int:
    """Return how many panel pixels a pixel of the view becomes, along each side."""
    return max(1, -(-SMALLEST_PANEL // min(video_TCHW.shape[-2:])))


def heat(value: np.ndarray, *, over: np.ndarray) -> np.ndarray:
    """Lay the colours of values in [0, 1] over a grey picture of 0 to 255: (..., 3) uint8."""
    place = np.clip(value, 0, 1) * (len(_HEAT) - 1)
    colours = [np.interp(place, np.arange(len(_HEAT)), _HEAT[:, c]) for c in range(3)]
    return (0.3 * over[..., None] + 0.7 * np.stack(colours, axis=-1)).astype(np.uint8)


def panels_of(video_TCHW: Tensor) -> np.ndarray:
    """Enlarge uint8 frames, pixels staying square and sharp: (T, Y, X, 3)."""
    zoom = zoom_of(video_TCHW)
    frames = video_TCHW.permute(0, 2, 3, 1).numpy()
    return frames.repeat(zoom, axis=1).repeat(zoom, axis=2)


def lift_of(score_N: Tensor) -> Tensor:
    """Return probabilities as multiples of chance."""
    return score_N / score_N.mean()


def bounds_of(value: Tensor) -> tuple[float, float]:
    """Return the ends of a colour scale for positive values.

    It reaches at least 5 % around the mean, lest rounding look like structure.
    """
    mean = value.mean().item()
    low, high = min(0.95 * mean, value.min().item()), max(1.05 * mean, value.max().item())
    return low, max(high, low + 1e-9)


def visible_row(video_TYX3: np.ndarray, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    """Show the visible tokens; hidden ones are hatched grey, darker where none predicts them."""
    tokens = math.prod(grid)
    hidden_N = plan.hidden_BN(tokens)[0].cpu()
    dropped_N = hidden_N.clone()
    dropped_N[plan.predict_BM[0].cpu()] = False
    hidden_TYX1, dropped_TYX1 = (
        _spread(one_N, grid, video_TYX3.shape[:3]).numpy()[..., None]
        for one_N in (hidden_N, dropped_N)
    )
    hatched = np.where(dropped_TYX1, _hatching(video_TYX3, _DROPPED), _hatching(video_TYX3))
    shown_TYX3 = np.where(hidden_TYX1, hatched, video_TYX3)
    seen, guessed, dropped = plan.visible_BK.shape[1], plan.predict_BM.shape[1], dropped_N.sum()
    notes = [f"grey is hidden: {seen} of {tokens} tokens visible, {guessed} to predict"]
    if dropped:
        notes.append(f"dark is hidden and not predicted: {dropped}")
    return Row("visible tokens", notes, shown_TYX3)


def probability_row(
    video_TYX3: np.ndarray,
    score_N: Tensor,
    grid: tuple[int, int, int],
    bounds: tuple[float, float],
) -> Row:
    """Lay the probabilities, as multiples of chance, over a grey picture."""
    low, high = bounds
    share_N = (lift_of(score_N) - low) / (high - low)
    share_TYX = _spread(share_N, grid, video_TYX3.shape[:3]).numpy()
    blend = heat(share_TYX, over=video_TYX3.mean(axis=-1))
    notes = ["of being drawn first, as a multiple of chance"]
    return Row("sampler probability", notes, blend, Scale(f"{low:.2f}x", f"{high:.2f}x"))


def _error_row(
    video_TYX3: np.ndarray, plan: MaskPlan, error_M: Tensor, grid: tuple[int, int, int]
) -> Row:
    """Lay the errors of the predicted tokens over a grey picture."""
    shape = video_TYX3.shape[:3]
    low, high = bounds_of(error_M)
    hidden_N = plan.hidden_BN(math.prod(grid))[0].cpu()
    predict_M = plan.predict_BM[0].cpu()
    share_N = torch.full(hidden_N.shape, math.nan)
    share_N[predict_M] = (error_M - low) / (high - low)
    share_TYX = _spread(share_N, grid, shape).numpy()
    grey_TYX = video_TYX3.mean(axis=-1)
    unseen_TYX1 = _spread(hidden_N, grid, shape).numpy()[..., None]
    others = np.where(unseen_TYX1, _hatching(video_TYX3), _dim(video_TYX3))
    hot = heat(np.nan_to_num(share_TYX), over=grey_TYX)
    panels = np.where(np.isnan(share_TYX)[..., None], others, hot)
    notes = ["of each predicted token, as the loss counts it; grey is visible"]
    notes.append(f"mean {error_M.mean().item():#.3g}")
    return Row("error", notes, panels, Scale(f"{low:#.3g}", f"{high:#.3g}"))


def motion_row(video_TYX3: np.ndarray, window: Window, *, every: int = 1) -> Row:
    """Draw the motion that masks are given over dim grey pictures.

    Where it has directions these are arrows, paler on frames that borrow them from a neighbour;
    where it is only known how much changes, a heat map.

    Args:
        video_TYX3: The panels of the window.
        window: The window.
        every: One panel of so many will be shown; the notes are about these.
    """
    if not has_direction(window):
        return _change_row(video_TYX3, window.motion.speed_BThw[0])
    field_Thw2 = window.motion.field_BThw2[0].numpy()
    panels = _dim(video_TYX3)
    zoom = zoom_of(window.video_TCHW)
    valid_T = window.motion.valid_BT[0].tolist()
    real = len(panels) - window.held
    notes = [f"way since the frame before, to scale up to {LONGEST} tokens"]
    for place, panel in enumerate(panels):
        if place >= real:
            _centre(panel, "held frame")
        elif valid_T[place]:
            draw_arrows(panel, field_Thw2[place], zoom=zoom, colour=_ARROW)
        elif field_Thw2[place].any():
            pale = draw_arrows(panel, field_Thw2[place], zoom=zoom, colour=_BORROWED)
            if pale and place % every == 0:
                notes[1:] = ["pale: no vectors of its own, a neighbouring frame's"]
        else:
            _centre(panel, "no vectors")
    return Row("motion", notes, panels)


def has_direction(window: Window) -> bool:
    """Tell vectors, and stillness, from a mere amount of change."""
    return bool(window.motion.field_BThw2.any() or not window.motion.speed_BThw.any())


def outline(row: Row, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    """Draw the border of what is hidden into a row."""
    panels = row.panels_TYX3.copy()
    hidden_TYX = _spread(plan.hidden_BN(math.prod(grid))[0].cpu(), grid, panels.shape[:3]).numpy()
    around_TYX = np.pad(hidden_TYX, ((0, 0), (2, 2), (2, 2)), mode="edge")
    inner_TYX = sliding_window_view(around_TYX, (5, 5), axis=(1, 2)).all(axis=(-2, -1))
    panels[hidden_TYX & ~inner_TYX] = _OUTLINE
    return replace(row, notes=[*row.notes, "blue: border of what is hidden"], panels_TYX3=panels)


def _change_row(video_TYX3: np.ndarray, speed_Thw: Tensor) -> Row:
    """Lay how much each token changes over a grey picture."""
    most = speed_Thw.max().item()
    T, h, w = speed_Thw.shape
    share_TYX = _spread(speed_Thw / most, (T, h, w), video_TYX3.shape[:3]).numpy()
    notes = ["change of grey levels since the frame before; it has no direction"]
    panels = heat(share_TYX, over=video_TYX3.mean(axis=-1))
    return Row("motion", notes, panels, Scale("0", f"{most:.3g}"))


def _hatching(video_TYX3: np.ndarray, greys: tuple[int, int] = _HIDDEN) -> np.ndarray:
    """Return the pattern of hidden tokens: (Y, X, 1)."""
    diagonal_YX = np.add.outer(*[np.arange(side) for side in video_TYX3.shape[1:3]]) % 6 < 1
    return np.where(diagonal_YX, *greys).astype(np.uint8)[..., None]


def _dim(video_TYX3: np.ndarray) -> np.ndarray:
    """Return dark grey pictures to draw upon: (T, Y, X, 3)."""
    grey = (video_TYX3.mean(axis=-1, keepdims=True) * 0.55).astype(np.uint8)
    return grey.repeat(3, axis=-1)


def _centre(panel: np.ndarray, text: str) -> None:
    height, width = panel.shape[:2]
    shown, size = fit(text, width)
    left, top = (width - text_width(shown, size)) // 2, (height - line_height(size)) // 2
    draw_text(panel, left, top, shown, colour=(220, 220, 220), size=size)


def _spread(value_N: Tensor, grid: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    """Give each panel pixel the value of its token: a tensor of `shape` (T, Y, X)."""
    value = value_N.reshape(grid)
    for axis, length in enumerate(shape):
        value = value.repeat_interleave(length // grid[axis], dim=axis)
    return value
