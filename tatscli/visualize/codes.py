"""Pictures of a tokenizer: the input, its reconstruction, scores and codes.

Shapes: B = 1, C colours, T frames, H and W pixels, t codes along time, h and w codes along the
picture, Y and X pixels of a panel.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.data.clip import ClipForm
from tatscli.data.normalize import to_unit
from tatscli.evaluation.reconstruction import psnr, ssim
from tatscli.tokenizer.base import TrainedTokenizer
from tatscli.visualize.panels import DROPPED, Row, hatching, panels_of, spread
from tatscli.visualize.render import Layout, write_picture
from tatscli.visualize.scores import salience_row
from tatscli.visualize.windows import Window

_GOLDEN = 0.6180339887  # hues of neighbouring codes lie far apart


@dataclass(frozen=True, slots=True)
class Coding:
    """What a tokenizer makes of a window.

    Attributes:
        codes_thw: int64, of every place, whether it is kept or not.
        reconstruction_TCHW: float32 in [0, 1], of what is kept.
        psnr_T: Of each frame, in dB.
        ssim_T: Of each frame.
        scores_thw: How salient each code is; None of a tokenizer without scores.
        kept_thw: Whether the code is among those decoded; None where all are.
    """

    codes_thw: Tensor
    reconstruction_TCHW: Tensor
    psnr_T: Tensor
    ssim_T: Tensor
    scores_thw: Tensor | None = None
    kept_thw: Tensor | None = None

    def facts(self, window: Window) -> dict[str, Any]:
        """Return the entry of the window in `--json`."""
        facts: dict[str, Any] = {
            "frames": window.frames,
            "times": [round(time, 6) for time in window.times],
            "psnr": round(self.psnr_T.mean().item(), 4),
            "ssim": round(self.ssim_T.mean().item(), 5),
            "codes": self.codes_thw.tolist(),
        }
        if self.scores_thw is not None:
            rounded = [float(f"{score:.4g}") for score in self.scores_thw.flatten().tolist()]
            facts["scores"] = np.reshape(rounded, self.scores_thw.shape).tolist()
        if self.kept_thw is not None:
            facts["kept"] = round(self.kept_thw.float().mean().item(), 4)
        return facts


class Coder:
    """Shows a tokenizer the windows of one video, one after the other.

    Where windows follow each other its scores are those of the whole video: a tokenizer may
    remember the end of the window before.

    Args:
        tokenizer: In evaluation mode.
    """

    def __init__(self, tokenizer: TrainedTokenizer) -> None:
        self.tokenizer = tokenizer
        self._waiting: list[Tensor] = []
        self._coded = tokenizer.stream(self._windows())

    def _windows(self) -> Iterator[Tensor]:
        while True:
            yield self._waiting.pop()

    @torch.no_grad()
    def look(self, video_TCHW: Tensor, *, follows: bool = False) -> Coding:
        """Encode the next window, uint8, and decode it again.

        Args:
            video_TCHW: Its frames.
            follows: Whether they go on where those of the last call ended.
        """
        if not follows:
            self._coded = self.tokenizer.stream(self._windows())
        device = next(self.tokenizer.parameters()).device
        frames_TCHW = to_unit(video_TCHW.to(device))
        self._waiting.append(frames_TCHW.transpose(0, 1)[None])
        coded = next(self._coded)
        found = self.tokenizer.restore(coded)
        decoded_TCHW = found.video_BCTHW[0].transpose(0, 1).float()
        scores_Bthw, kept_Bthw = found.scores_Bthw, found.kept_Bthw
        return Coding(
            coded.codes_Bthw[0].cpu(),
            decoded_TCHW.cpu(),
            psnr(decoded_TCHW, frames_TCHW).cpu(),
            ssim(decoded_TCHW, frames_TCHW).cpu(),
            None if scores_Bthw is None else scores_Bthw[0].float().cpu(),
            None if kept_Bthw is None else kept_Bthw[0].cpu() > 0,
        )


def render_codes(
    clip: Path,
    out: Path,
    tokenizer: TrainedTokenizer,
    form: ClipForm,
    layout: Layout,
    *,
    watch: Callable[[Window, Coding], None],
) -> float | None:
    """Write the picture of a tokenizer; arguments and result as of `write_picture`.

    Args:
        tokenizer: The tokenizer.
        watch: Called with every window shown.
    """
    coder = Coder(tokenizer)

    def paint(window: Window) -> list[Row]:
        coding = coder.look(window.video_TCHW, follows=window.follows)
        watch(window, coding)
        return coding_rows(window.video_TCHW, coding, tokenizer.codebook_size)

    return write_picture(clip, out, form, layout, paint)


def coding_rows(video_TCHW: Tensor, coding: Coding, size: int) -> list[Row]:
    """Paint input, reconstruction, scores and what is kept where there are such, and codes."""
    video = panels_of(video_TCHW)
    t, h, w = coding.codes_thw.shape
    decoded = coding.reconstruction_TCHW.mul(255).round().to(torch.uint8)
    notes = [f"PSNR {coding.psnr_T.mean():.1f} dB, SSIM {coding.ssim_T.mean():.3f}"]
    more = []
    if coding.scores_thw is not None:
        words = ["how far what the scorer sees is from the slice before"]
        more.append(salience_row("scores", words, video, coding.scores_thw, (t, h, w)))
    if coding.kept_thw is not None:
        kept = f"kept {int(coding.kept_thw.sum())} of {coding.kept_thw.numel()} codes"
        notes.append(kept)
        kept_TYX1 = spread(coding.kept_thw, (t, h, w), video.shape[:3]).numpy()[..., None]
        shown = np.where(kept_TYX1, video, hatching(video, DROPPED))
        more.append(Row("kept codes", [f"{kept}, the rest is hatched"], shown))
    used = coding.codes_thw.unique().numel()
    return [
        Row("input", [], video),
        Row("reconstruction", notes, panels_of(decoded)),
        *more,
        Row("codes", [f"a colour for each of {used} codes of {size}"], _paint(coding, video.shape)),
    ]


def _paint(coding: Coding, shape: tuple[int, ...]) -> np.ndarray:
    """Give every code a colour of its own: (T, Y, X, 3) uint8."""
    codes = coding.codes_thw.numpy()
    found, place = np.unique(codes, return_inverse=True)
    colours = np.array([_colour(int(code)) for code in found], dtype=np.uint8)
    painted = colours[place.reshape(codes.shape)]
    for axis in range(3):
        painted = painted.repeat(shape[axis] // codes.shape[axis], axis=axis)
    return painted


def _colour(code: int) -> tuple[int, ...]:
    bright = 0.6 + 0.4 * (code * _GOLDEN * 7 % 1)
    colour = colorsys.hsv_to_rgb(code * _GOLDEN % 1, 0.65, bright)
    return tuple(round(255 * part) for part in colour)
