"""`View`: one crop, resize and flip, applied to frames and to motion by the same object.

Shapes: T frames, J steps of motion, C channels, H and W pixels; y and x cells of the stored motion
    field; h and w tokens of the view.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from tatscli.recipe.schema import Data

# VideoMAE's 13 places of the multi-scale crop, in quarters of the free height and width.
_PLACES = [(row, column) for row in (0, 2, 4) for column in (0, 2, 4)]
_PLACES += [(row, column) for row in (1, 3) for column in (1, 3)]


@dataclass(frozen=True, slots=True)
class View:
    """A crop of the picture, resized and perhaps mirrored, in this order.

    Attributes:
        height: Height of the stored frame in pixels.
        width: Width of the stored frame in pixels.
        top: First row of the crop.
        left: First column of the crop.
        crop_height: Rows of the crop.
        crop_width: Columns of the crop.
        size: Height and width of the result in pixels.
        flip: Mirror left and right.
        antialias: Resize with antialiasing; without, a reduced picture shows fewer of its pixels.

    Raises:
        ValueError: If the crop is empty or leaves the picture.
    """

    height: int
    width: int
    top: int
    left: int
    crop_height: int
    crop_width: int
    size: tuple[int, int]
    flip: bool = False
    antialias: bool = True

    def __post_init__(self) -> None:
        inside_y = 0 <= self.top < self.top + self.crop_height <= self.height
        inside_x = 0 <= self.left < self.left + self.crop_width <= self.width
        if not (inside_y and inside_x and min(self.size) > 0):
            raise ValueError(f"the crop is empty or leaves the picture: {self}")

    def frames(self, video_TCHW: Tensor) -> Tensor:
        """Cut, resize (bilinear) and mirror uint8 frames: (T, C, *size) uint8."""
        cut = self.cut(video_TCHW)
        if cut.shape[-2:] != self.size:
            cut = functional.interpolate(cut, self.size, mode="bilinear", antialias=self.antialias)
        return cut.flip(-1) if self.flip else cut

    def cut(self, video_TCHW: Tensor) -> Tensor:
        """Cut frames, and no more: what is left to do is resizing and mirroring (`crops.py`)."""
        if video_TCHW.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"a view of {self.height} x {self.width} cannot cut {tuple(video_TCHW.shape)}"
            )
        return video_TCHW[
            ...,
            self.top : self.top + self.crop_height,
            self.left : self.left + self.crop_width,
        ]

    def motion(
        self, steps_JT2yx: Tensor, *, cell: int, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Average the motion under each token of the view.

        A token's value is the exact area-weighted mean over the pixels it shows, wherever the crop
        cuts the cells; vectors are scaled with the picture and x changes its sign when it is
        mirrored.

        Args:
            steps_JT2yx: float32, the way of the content into each frame, step by step in stored
                pixels, x first; the last cell of each axis ends at the border of the picture.
            cell: Side of a cell in stored pixels.
            grid: Tokens along height and width of the view.

        Returns:
            The displacement, sum of the steps, float32 (T, h, w, 2), and the length of the way, sum
            of their lengths, float32 (T, h, w), both in pixels of the view.
        """
        cells_y, cells_x = steps_JT2yx.shape[3:]
        rows_hy = _overlap(self.top, self.crop_height, grid[0], cells_y, cell, self.height)
        columns_wx = _overlap(self.left, self.crop_width, grid[1], cells_x, cell, self.width)
        scale_y, scale_x = self.size[0] / self.crop_height, self.size[1] / self.crop_width
        # Displacement and length side by side, so that two products pool them all; they are pooled
        # in units of the view's x, and scaled after.
        x_JTyx, y_JTyx = steps_JT2yx.unbind(2)
        length_Tyx = torch.hypot(x_JTyx, y_JTyx * (scale_y / scale_x)).sum(0)
        all_3Tyx = torch.stack([*steps_JT2yx.sum(0).unbind(1), length_Tyx])
        pooled_3Thw = rows_hy @ all_3Tyx @ columns_wx.T
        sign = -1 if self.flip else 1
        scales_3 = pooled_3Thw.new_tensor((sign * scale_x, scale_y, scale_x))
        pooled_3Thw = pooled_3Thw * scales_3[:, None, None, None]
        if self.flip:
            pooled_3Thw = pooled_3Thw.flip(-1)
        return pooled_3Thw[:2].movedim(0, -1).contiguous(), pooled_3Thw[2]


def pretraining_view(height: int, width: int, data: Data, rng: random.Random) -> View:
    """Draw the view of a frame of pretraining, as `data.crop` says."""
    if data.crop == "centre":
        view = spatial_crop(height, width, data.view_size, crop=0, crops=1)
        return replace(view, flip=rng.random() < data.flip)
    return corner_crop(
        height, width, data.view_size, scales=data.crop_scales, flip=data.flip, rng=rng
    )


def corner_crop(
    height: int,
    width: int,
    size: tuple[int, int],
    *,
    scales: Sequence[float],
    flip: float,
    rng: random.Random,
) -> View:
    """Draw the view of pretraining, VideoMAE's multi-scale corner crop (its `transforms.py`).

    Height and width are each a scale of the largest crop with the aspect of the view (of the short
    side, for square views), at most one step of the list apart; the crop lies at one of 13 places:
    corners, centre, middles of the edges and of the quarters. Ours reaches the far edges exactly,
    where VideoMAE stays up to 3 pixels away, and sides that nearly match `size` are not rounded to
    it.

    Args:
        height: Height of the stored frame.
        width: Width of the stored frame.
        size: Height and width of the view.
        scales: Sides as shares of those of the largest crop, in order.
        flip: Probability of a mirrored view.
        rng: Where everything is drawn from.
    """
    talls, wides = (
        [max(1, int(most * scale)) for scale in scales]
        for most in _largest_crop(height, width, size)
    )
    pairs = [
        (tall, wide)
        for i, tall in enumerate(talls)
        for j, wide in enumerate(wides)
        if abs(i - j) <= 1
    ]
    tall, wide = rng.choice(pairs)
    row, column = rng.choice(_PLACES)
    top, left = (height - tall) * row // 4, (width - wide) * column // 4
    return View(height, width, top, left, tall, wide, size, rng.random() < flip)


def random_resized_crop(
    height: int,
    width: int,
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip: float,
    rng: random.Random,
    antialias: bool = True,
) -> View:
    """Draw the view of fine-tuning: random area and aspect (Szegedy et al. 2014, section 6).

    The area is uniform in `scale` shares of the picture, the aspect (width by height) log-uniform
    in `ratio` times that of the view, so that 1 distorts nothing. When ten draws do not fit, the
    largest centred crop of an allowed aspect is taken, as torchvision does.
    """
    lowest, highest = (bound * (size[1] / size[0]) for bound in ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(lowest), math.log(highest)))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
            break
    else:
        tall = min(height, max(1, round(width / lowest)))
        wide = min(width, max(1, round(height * highest)))
        top, left = (height - tall) // 2, (width - wide) // 2
    return View(height, width, top, left, tall, wide, size, rng.random() < flip, antialias)


def spatial_crop(
    height: int,
    width: int,
    size: tuple[int, int],
    *,
    crop: int,
    crops: int,
    antialias: bool = True,
) -> View:
    """Return `crop` of `crops` along the side that has room; a single one lies in the centre.

    Each is the largest with the aspect of the view. VideoMAE first resizes the short side to `size`
    and cuts a square out of that, without antialiasing: with `antialias=False` the two show the
    same place to half a pixel of the result.
    """
    tall, wide = _largest_crop(height, width, size)
    top, left = (
        spare // 2 if crops == 1 else crop * spare // (crops - 1)
        for spare in (height - tall, width - wide)
    )
    return View(height, width, top, left, tall, wide, size, antialias=antialias)


def _largest_crop(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the largest crop of a picture that has the aspect of a view."""
    rows, columns = size
    if height * columns < width * rows:
        return height, max(1, round(height * columns / rows))
    return max(1, round(width * rows / columns)), width


@lru_cache(maxsize=256)  # the places of the multi-scale crop on pictures of a few sizes
def _overlap(start: int, length: int, tokens: int, cells: int, cell: int, extent: int) -> Tensor:
    """Return the share of each token's length in each cell: (tokens, cells), rows sum to 1."""
    edges = start + length * torch.arange(tokens + 1, dtype=torch.float64) / tokens
    bounds = cell * torch.arange(cells + 1, dtype=torch.float64)
    bounds[-1] = extent
    low = torch.maximum(edges[:-1, None], bounds[None, :-1])
    high = torch.minimum(edges[1:, None], bounds[None, 1:])
    shared = (high - low).clamp(min=0)
    return (shared / shared.sum(1, keepdim=True)).float()
