"""`hog`: equal to scikit-image, over the borders of tokens, for frames and colours asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.feature import hog
from torch import Tensor

from tatscli.data.clip import Clip, ClipForm
from tatscli.errors import RecipeError
from tatscli.recipe import schema
from tatscli.targets import build_target
from tatscli.targets.hog import HogTarget, oriented_histograms
from tests.clips import texture

GRID, TUBELET, PATCH = (2, 2, 3), 3, 16
FORM = ClipForm(GRID, TUBELET, PATCH, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
INDEX = torch.tensor([[0, 4, 7, 11], [1, 2, 5, 10]])


def make(form: ClipForm = FORM, **settings: Any) -> HogTarget:
    target = build_target(schema.HogTarget(kind="hog", **settings), form=form)
    assert isinstance(target, HogTarget)
    return target


def video() -> Tensor:
    """Textures of other colours in every frame, and a flat corner."""
    frames = [[texture(32, 48, seed=10 * b + t) for t in range(6)] for b in range(2)]
    source = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).contiguous()
    source[0, :, :, :20, :20] = 77
    return source


def library(picture: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """scikit-image's histograms, each cell a block of its own: (rows, columns, bins)."""
    found = hog(
        picture / 255,
        orientations=bins,
        pixels_per_cell=(cell, cell),
        cells_per_block=(1, 1),
        block_norm="L2",
        feature_vector=False,
    )
    return found[:, :, 0, 0]


@pytest.mark.parametrize(("cell", "bins"), [(8, 9), (4, 9), (16, 6)])
@pytest.mark.parametrize("frames", ["middle", "all"])
def test_equals_scikit_image_colour_by_colour(cell: int, bins: int, frames: str) -> None:
    source, side = video(), PATCH // cell
    target = make(cell=cell, bins=bins, frames=frames)
    values = target.of(FORM.clip(source), INDEX)
    used = [1] if frames == "middle" else [0, 1, 2]
    assert values.shape == (2, 4, target.predicts) == (2, 4, len(used) * 3 * side**2 * bins)
    for b in range(2):
        for place, token in enumerate(INDEX[b].tolist()):
            time, site = divmod(token, 6)
            row, column = site // 3 * side, site % 3 * side
            expected = [
                library(source[b, colour, time * TUBELET + frame].numpy(), cell, bins)[
                    row : row + side, column : column + side
                ]
                for frame in used
                for colour in range(3)
            ]
            wanted = torch.from_numpy(np.stack(expected)).flatten().float()
            torch.testing.assert_close(values[b, place], wanted, atol=1e-4, rtol=0)


def test_cells_have_length_1_and_flat_ones_none() -> None:
    source = video()
    values = make(frames="all").of(FORM.clip(source), INDEX)
    length = values.unflatten(-1, (-1, 9)).norm(dim=-1)
    assert (length[0, 0] == 0).all()  # the token in the flat corner
    assert (length.flatten(0, 1)[1:] - 1).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("degrees", "number"), [(0, 0), (10, 0), (45, 2), (90, 4), (135, 6), (179, 8), (190, 0)]
)
def test_a_ramp_falls_into_the_bin_of_its_direction(degrees: float, number: int) -> None:
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (0.5 + (x * math.cos(angle) + y * math.sin(angle)) / 100)[None]
    middle = oriented_histograms(ramp, 8, 9)[0, 1, 1]
    assert int(middle.argmax()) == number
    torch.testing.assert_close(middle.max(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_neighbouring_tokens_reach_over_the_border_and_other_frames_do_not() -> None:
    source, target = video(), make()
    index = torch.tensor([[1], [1]])  # the middle one of the upper row
    before = target.of(FORM.clip(source), index)
    beside = source.clone()
    beside[:, :, 1, :16, 15] = 0  # the last column of the token to the left, middle frame
    away = source.clone()
    away[:, :, 1, :16, :15] = 0  # further to the left
    away[:, :, [0, 2, 3, 4, 5]] = 0
    assert (target.of(FORM.clip(beside), index) - before).abs().max() > 0.01
    assert torch.equal(target.of(FORM.clip(away), index), before)


def test_the_error_is_the_mean_square() -> None:
    values = make().of(FORM.clip(video()), INDEX)
    guess = torch.rand(values.shape)
    error = make().error(guess.bfloat16(), values)
    assert error.shape == (2, 4) and error.dtype == torch.float32
    torch.testing.assert_close(error, (guess.bfloat16().float() - values).square().mean(-1))
    assert (make().error(values, values) == 0).all()


def test_two_frames_have_the_later_one_in_the_middle() -> None:
    form = ClipForm((1, 1, 1), 2, 8)
    source = video()[:, :, :2, 20:28, 20:28]
    clip: Clip = form.clip(source)
    only = make(form).of(clip, torch.zeros(2, 1, dtype=torch.int64))
    both = make(form, frames="all").of(clip, torch.zeros(2, 1, dtype=torch.int64))
    assert torch.equal(only, both[..., 27:])


def test_cells_that_do_not_fill_a_token_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"`cell: 6` does not divide `model\.patch: 16`") as found:
        make(cell=6)
    assert found.value.hint == "for example `cell: 2`"
