"""The rows of a mask: input, probability, visible tokens, what a model makes of them, motion.

Shapes: T frames, Y and X pixels of a panel, N tokens of a clip, h and w tokens along the picture.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.arrows import LONGEST, draw_arrows
from tatscli.visualize.facts import entropy_words, insight_of, motion_words
from tatscli.visualize.panels import (
    DROPPED,
    Row,
    Scale,
    centre,
    dim,
    hatching,
    heat_over,
    panels_of,
    spread,
    zoom_of,
)
from tatscli.visualize.scores import bounds_of, error_row, lift_of, probability_row, salience_row
from tatscli.visualize.viewer import MaskedWindow
from tatscli.visualize.windows import Window

_ARROW = (255, 214, 60)
_BORROWED = (255, 240, 190)
_OUTLINE = (90, 220, 255)
_LARGEST = 0.99  # quantile of the changes that fills the contrast
_LEAST_CHANGE = 4 / 255  # below it, what changes is noise


def rows_of(
    window: Window,
    masked: MaskedWindow,
    *,
    grid: tuple[int, int, int],
    statistics: bool,
    chosen: str = "",
    outlined: bool = False,
    shown: Collection[int] | None = None,
) -> list[Row]:
    """Paint every row there is something to show for.

    Args:
        window: The frames.
        masked: What mask and model make of them.
        grid: Tokens along time, height and width.
        statistics: Whether the reconstruction borrows each patch's mean and deviation.
        chosen: How codes were taken from what the model predicts.
        outlined: Whether to draw the border of what is hidden into the motion row.
        shown: Places of the frames that will be shown; None means all.
    """
    insight = insight_of(window, masked, grid)
    video = panels_of(window.video_TCHW)
    rows = [Row("input", [], video)]
    if masked.score_N is not None:
        bounds = bounds_of(lift_of(masked.score_N))
        row = probability_row(video, masked.score_N, grid, bounds)
        rows.append(replace(row, notes=[*row.notes, entropy_words(insight)]))
    if masked.saliency_N is not None:
        words = ["the measure that `predict` ranks tokens by"]
        rows.append(salience_row("saliency", words, video, masked.saliency_N, grid))
    seen = visible_row(video, masked.plan, grid)
    rows.append(replace(seen, notes=[*seen.notes, *motion_words(insight)]))
    if masked.plan.visible_BK.shape[1] + masked.plan.predict_BM.shape[1] < math.prod(grid):
        rows.append(selected_row(video, masked.plan, grid))
    if masked.reconstruction_CTHW is not None:
        notes = ["the predicted patches, pasted among the visible ones"]
        if statistics:
            notes.append("mean and contrast of each patch copied from the input")
        rows.append(Row("reconstruction", notes, _painted(masked.reconstruction_CTHW)))
    if masked.coded_CTHW is not None:
        notes = ["the input, decoded from all of its codes"]
        rows.append(Row("tokenizer's reconstruction", notes, _painted(masked.coded_CTHW)))
    if masked.guessed_CTHW is not None:
        notes = [
            f"the model's codes ({chosen}) at the {masked.plan.predict_BM.shape[1]} predicted "
            "tokens, the true codes at all others, decoded together by the tokenizer"
        ]
        rows.append(Row("predicted codes decoded", notes, _painted(masked.guessed_CTHW)))
    if masked.change_CTHW is not None and masked.guessed_change_CTHW is not None:
        rows += difference_rows(masked.change_CTHW, masked.guessed_change_CTHW)
    if masked.error_M is not None:
        rows.append(error_row(video, masked.plan, masked.error_M, grid))
    motion = motion_row(video, window, shown=shown)
    rows.append(outline(motion, masked.plan, grid) if outlined else motion)
    return rows


def visible_row(video_TYX3: np.ndarray, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    """Show the visible tokens; hidden ones are hatched grey, darker where none predicts them."""
    tokens = math.prod(grid)
    hidden_N = plan.hidden_BN(tokens)[0].cpu()
    dropped_N = hidden_N.clone()
    dropped_N[plan.predict_BM[0].cpu()] = False
    hidden_TYX1, dropped_TYX1 = (
        spread(one_N, grid, video_TYX3.shape[:3]).numpy()[..., None]
        for one_N in (hidden_N, dropped_N)
    )
    hatched = np.where(dropped_TYX1, hatching(video_TYX3, DROPPED), hatching(video_TYX3))
    shown_TYX3 = np.where(hidden_TYX1, hatched, video_TYX3)
    seen, guessed, dropped = plan.visible_BK.shape[1], plan.predict_BM.shape[1], dropped_N.sum()
    notes = [f"grey is hidden: {seen} of {tokens} tokens visible, {guessed} to predict"]
    if dropped:
        notes.append(f"dark is hidden and not predicted: {dropped}")
    return Row("visible tokens", notes, shown_TYX3)


def selected_row(video_TYX3: np.ndarray, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    """Show the tokens that the decoder predicts; all others are hatched."""
    tokens, predict_M = math.prod(grid), plan.predict_BM[0].cpu()
    selected_N = torch.zeros(tokens, dtype=torch.bool)
    selected_N[predict_M] = True
    selected_TYX1 = spread(selected_N, grid, video_TYX3.shape[:3]).numpy()[..., None]
    shown_TYX3 = np.where(selected_TYX1, video_TYX3, hatching(video_TYX3, DROPPED))
    notes = [
        f"the tokens that `predict` chooses: {len(predict_M)} of {tokens}",
        "hatched: visible, or hidden and not predicted",
    ]
    return Row("decoder-selected tokens", notes, shown_TYX3)


def difference_rows(change_CTHW: Tensor, guessed_CTHW: Tensor) -> list[Row]:
    """Show how the window changes, and what of it is predicted: grey stands still. Both have the
    contrast at which the largest true changes become white and black."""
    largest = np.quantile(change_CTHW.abs().numpy(), _LARGEST)
    times = 0.5 / max(largest, _LEAST_CHANGE)
    notes = ["later less earlier frame: grey is no change", f"contrast x {times:.1f}"]
    guess = ["the predicted differences, pasted among those of the visible tokens", notes[1]]
    return [
        Row("differences", notes, _painted(0.5 + times * change_CTHW)),
        Row("predicted differences", guess, _painted(0.5 + times * guessed_CTHW)),
    ]


def _painted(video_CTHW: Tensor) -> np.ndarray:
    """Make panels of a video in about [0, 1]."""
    painted_TCHW = video_CTHW.transpose(0, 1).clamp(0, 1).mul(255).round()
    return panels_of(painted_TCHW.to(torch.uint8))


def motion_row(
    video_TYX3: np.ndarray, window: Window, *, shown: Collection[int] | None = None
) -> Row:
    """Draw the motion that masks are given over dim grey pictures.

    Where it has directions these are arrows, paler on frames that borrow them from a neighbour;
    where it is only known how much changes, a heat map.

    Args:
        video_TYX3: The panels of the window.
        window: The window.
        shown: Places of the panels that will be shown, which alone are drawn upon; the notes are
            about these. None means all.
    """
    if not has_direction(window):
        return _change_row(video_TYX3, window.motion.speed_BThw[0])
    field_Thw2 = window.motion.field_BThw2[0].numpy()
    panels = dim(video_TYX3)
    zoom = zoom_of(window.video_TCHW)
    valid_T = window.motion.valid_BT[0].tolist()
    notes = [f"motion since the previous frame, to scale up to {LONGEST} tokens"]
    for place in range(len(panels)) if shown is None else shown:
        panel = panels[place]
        if place and window.frames[place] == window.frames[place - 1]:
            centre(panel, "held frame")
        elif valid_T[place]:
            draw_arrows(panel, field_Thw2[place], zoom=zoom, colour=_ARROW)
        elif field_Thw2[place].any():
            pale = draw_arrows(panel, field_Thw2[place], zoom=zoom, colour=_BORROWED)
            if pale:
                notes[1:] = ["pale: no vectors; those of a neighbouring frame are shown"]
        else:
            centre(panel, "no vectors")
    return Row("motion", notes, panels)


def has_direction(window: Window) -> bool:
    """Tell vectors, and stillness, from a mere amount of change."""
    return bool(window.motion.field_BThw2.any() or not window.motion.speed_BThw.any())


def outline(row: Row, plan: MaskPlan, grid: tuple[int, int, int]) -> Row:
    """Draw the border of what is hidden into a row."""
    panels = row.panels_TYX3.copy()
    hidden_TYX = spread(plan.hidden_BN(math.prod(grid))[0].cpu(), grid, panels.shape[:3]).numpy()
    around_TYX = np.pad(hidden_TYX, ((0, 0), (2, 2), (2, 2)), mode="edge")
    inner_TYX = sliding_window_view(around_TYX, (5, 5), axis=(1, 2)).all(axis=(-2, -1))
    panels[hidden_TYX & ~inner_TYX] = _OUTLINE
    return replace(row, notes=[*row.notes, "blue: border of the hidden area"], panels_TYX3=panels)


def _change_row(video_TYX3: np.ndarray, speed_Thw: Tensor) -> Row:
    """Lay how much each token changes over a grey picture."""
    most = speed_Thw.max().item()
    T, h, w = speed_Thw.shape
    share_TYX = spread(speed_Thw / most, (T, h, w), video_TYX3.shape[:3]).numpy()
    notes = ["change of brightness since the previous frame; no direction is known"]
    panels = heat_over(video_TYX3, share_TYX)
    return Row("motion", notes, panels, Scale("0", f"{most:.3g}"))
