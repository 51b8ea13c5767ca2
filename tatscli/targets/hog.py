"""`hog`: histograms of oriented gradients (MaskFeat, Wei et al. 2022, arXiv 2112.09133).

As MaskFeat: 9 unsigned orientations, cells of 8 x 8 pixels, each colour by itself, each cell scaled
to length 1. Gradients, bins and scale are those of scikit-image, from Dalal and Triggs: differences
of the two neighbours, 0 at the border of the frame, whole magnitudes in one bin. MaskFeat's code
(facebookresearch/SlowFast, slowfast/models/operators.py) takes Sobel's, and mirrors the border.

Shapes: B batch, N tokens of a clip, M picked, t slices, H and W pixels, X pictures, I and J cell
rows and columns, O orientations, C values of a token in the order (frame, colour, row, column,
orientation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm, pick
from tatscli.data.normalize import to_unit
from tatscli.errors import RecipeError
from tatscli.recipe import schema
from tatscli.targets.base import Target

EPS = 1e-5  # of pixels in [0, 1], where a cell is flat; scikit-image's


class HogTarget(Target):
    """Histograms of the gradients of every cell of a token.

    Gradients are those of whole frames, so they reach over the borders of tokens.

    Raises:
        RecipeError: If cells do not fill a token.
    """

    config: schema.HogTarget

    def __init__(self, config: schema.HogTarget, *, form: ClipForm) -> None:
        super().__init__(config, form=form)
        if form.patch % config.cell:
            raise RecipeError(
                f"`targets`: a `hog` with `cell: {config.cell}` does not divide "
                f"`model.patch: {form.patch}`",
                hint=f"for example `cell: {math.gcd(form.patch, config.cell)}`",
            )
        every = config.frames == "all"
        self.frames = range(form.tubelet) if every else [form.tubelet // 2]
        self.still = ClipForm(form.grid, 1, form.patch)
        self.predicts = len(self.frames) * 3 * (form.patch // config.cell) ** 2 * config.bins

    def of(self, clip: Clip, index_BM: Tensor) -> Tensor:
        """Return the histograms of the tokens: (B, M, C), float32."""
        by_frame_BNUQ = clip.pixels_BNP.unflatten(-1, (clip.form.tubelet, -1))
        # One frame of the cubes after the other, to hold the gradients of few at a time.
        parts = [pick(self._histograms(by_frame_BNUQ[:, :, u]), index_BM) for u in self.frames]
        return torch.cat(parts, dim=-1)

    def _histograms(self, pixels_BNQ: Tensor) -> Tensor:
        """Return the histograms of one frame of all cubes: (B, N, values)."""
        cell, per_token = self.config.cell, self.still.patch // self.config.cell
        frames_B3tHW = self.still.join(to_unit(pixels_BNQ))
        found_XIJO = oriented_histograms(frames_B3tHW.flatten(0, 2), cell, self.config.bins)
        t, h, w = self.still.grid
        by_cell = found_XIJO.reshape(-1, 3, t, h, per_token, w, per_token, self.config.bins)
        return by_cell.permute(0, 2, 3, 5, 1, 4, 6, 7).reshape(len(pixels_BNQ), t * h * w, -1)

    def error(self, prediction_BMC: Tensor, values_BMC: Tensor) -> Tensor:
        """Return the mean squared error of each token: (B, M), float32."""
        return (prediction_BMC.float() - values_BMC).square().mean(dim=-1)


def oriented_histograms(picture_XHW: Tensor, cell: int, bins: int) -> Tensor:
    """Return the histogram of gradient directions of each cell, of length 1: (X, I, J, O).

    Args:
        picture_XHW: Pictures of one channel in [0, 1]; cells fill them.
        cell: Height and width of a cell in pixels.
        bins: Equal parts of 180 degrees, the first from 0: a gradient along the columns.
    """
    down_XHW, right_XHW = torch.zeros_like(picture_XHW), torch.zeros_like(picture_XHW)
    down_XHW[:, 1:-1] = picture_XHW[:, 2:] - picture_XHW[:, :-2]
    right_XHW[:, :, 1:-1] = picture_XHW[:, :, 2:] - picture_XHW[:, :, :-2]
    # Divided by pi first: opposite directions, 0 and +-180 degrees, are then whole numbers.
    turn_XHW = torch.atan2(down_XHW, right_XHW) / math.pi * bins
    bin_XHW = turn_XHW.floor().remainder(bins)
    size_XHW = torch.hypot(down_XHW, right_XHW)
    # Bin by bin: adding up by index gives other last bits every time on a GPU.
    sums = [_by_cell(size_XHW.where(bin_XHW == number, 0.0), cell) for number in range(bins)]
    sum_XIJO = torch.stack(sums, dim=-1)
    return sum_XIJO / (sum_XIJO.square().sum(dim=-1, keepdim=True) + EPS**2).sqrt()


def _by_cell(values_XHW: Tensor, cell: int) -> Tensor:
    """Return the mean of each cell: (X, I, J)."""
    return values_XHW.unflatten(2, (-1, cell)).mean(dim=3).unflatten(1, (-1, cell)).mean(dim=2)
