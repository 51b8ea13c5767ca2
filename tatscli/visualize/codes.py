"""A tokenizer at work: the input, what its codes keep of it, and the codes.

Shapes: T frames, C colours, H and W pixels, h and w codes along the picture, Y and X pixels of a
panel.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.data.clip import ClipForm
from tatscli.data.normalize import to_unit
from tatscli.evaluation.reconstruction import psnr, ssim
from tatscli.tokenizer.base import Tokenizer
from tatscli.visualize.panels import Row, panels_of
from tatscli.visualize.render import Page, write_pages
from tatscli.visualize.windows import Window

_GOLDEN = 0.6180339887  # hues of neighbouring codes lie far apart


@dataclass(frozen=True, slots=True)
class Coded:
    """What a tokenizer makes of a window.

    Attributes:
        codes_Thw: int64.
        reconstruction_TCHW: float32 in [0, 1].
        psnr_T: Of each frame, in dB.
        ssim_T: Of each frame.
    """

    codes_Thw: Tensor
    reconstruction_TCHW: Tensor
    psnr_T: Tensor
    ssim_T: Tensor

    def facts(self, window: Window) -> dict[str, Any]:
        """Return what `--json` tells of the window."""
        return {
            "frames": window.frames,
            "times": [round(time, 6) for time in window.times],
            "psnr": round(self.psnr_T.mean().item(), 4),
            "ssim": round(self.ssim_T.mean().item(), 5),
            "codes": self.codes_Thw.tolist(),
        }


def render_codes(
    clip: Path,
    out: Path,
    tokenizer: Tokenizer,
    form: ClipForm,
    page: Page,
    *,
    watch: Callable[[Window, Coded], None],
) -> float | None:
    """Write the picture of a tokenizer of frames; arguments and result as of `write_pages`.

    Args:
        tokenizer: What is looked at.
        watch: Called with every window shown.
    """

    def paint(window: Window) -> list[Row]:
        coded = look(tokenizer, window)
        watch(window, coded)
        return rows_of(window, coded, tokenizer.codebook_size)

    return write_pages(clip, out, form, page, paint)


@torch.no_grad()
def look(tokenizer: Tokenizer, window: Window) -> Coded:
    """Encode a window and decode it again."""
    device = next(tokenizer.parameters()).device
    frames_TCHW = to_unit(window.video_TCHW.to(device))
    codes_1Thw = tokenizer.encode(frames_TCHW.transpose(0, 1)[None])
    decoded_TCHW = tokenizer.decode(codes_1Thw)[0].transpose(0, 1)
    return Coded(
        codes_1Thw[0].cpu(),
        decoded_TCHW.float().cpu(),
        psnr(decoded_TCHW, frames_TCHW).cpu(),
        ssim(decoded_TCHW, frames_TCHW).cpu(),
    )


def rows_of(window: Window, coded: Coded, size: int) -> list[Row]:
    """Paint input, reconstruction and codes."""
    video = panels_of(window.video_TCHW)
    decoded = coded.reconstruction_TCHW.mul(255).round().to(torch.uint8)
    used = coded.codes_Thw.unique().numel()
    quality = f"PSNR {coded.psnr_T.mean():.1f} dB, SSIM {coded.ssim_T.mean():.3f}"
    return [
        Row("input", [], video),
        Row("reconstruction", [quality], panels_of(decoded)),
        Row("codes", [f"a colour for each of {used} codes of {size}"], _paint(coded, video.shape)),
    ]


def _paint(coded: Coded, shape: tuple[int, ...]) -> np.ndarray:
    """Give every code a colour of its own: (T, Y, X, 3) uint8."""
    codes = coded.codes_Thw.numpy()
    found, place = np.unique(codes, return_inverse=True)
    colours = np.array([_colour(int(code)) for code in found], dtype=np.uint8)
    painted = colours[place.reshape(codes.shape)]
    _, height, width = codes.shape
    return painted.repeat(shape[1] // height, axis=1).repeat(shape[2] // width, axis=2)


def _colour(code: int) -> tuple[int, ...]:
    bright = 0.6 + 0.4 * (code * _GOLDEN * 7 % 1)
    colour = colorsys.hsv_to_rgb(code * _GOLDEN % 1, 0.65, bright)
    return tuple(round(255 * part) for part in colour)
