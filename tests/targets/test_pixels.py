"""Pixel targets: values by hand, errors, and the way back to a picture."""

from __future__ import annotations

import statistics

import pytest
import torch

from tatscli.recipe import schema
from tatscli.targets import build_target
from tatscli.targets.pixels import PixelTarget

GRID, TUBELET, PATCH = (2, 2, 3), 2, 4


def make(*, normalize: bool = True) -> PixelTarget:
    config = schema.PixelTarget(kind="pixels", normalize=normalize, weight=2.0)
    return build_target(config, grid=GRID, tubelet=TUBELET, patch=PATCH)


def video() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 4, 8, 12)


def test_values_follow_the_order_frame_row_column_colour() -> None:
    source = video()
    target = make(normalize=False)
    cubes = target.of(source)
    assert cubes.shape == (2, 12, target.width) == (2, 12, 96)
    assert target.weight == 2.0
    for t, row, column in [(0, 0, 0), (1, 0, 2), (1, 1, 1)]:
        token = cubes[1, (t * 2 + row) * 3 + column]
        for f, y, x, c in [(0, 0, 0, 1), (1, 2, 3, 0), (1, 3, 0, 2)]:
            expected = source[1, c, t * 2 + f, row * 4 + y, column * 4 + x]
            assert token[((f * 4 + y) * 4 + x) * 3 + c] == expected


def test_each_cube_is_standardised_by_colour_with_the_unbiased_deviation() -> None:
    source = video()
    token = make().of(source)[0, 7].reshape(32, 3)  # slice 1, row 0, column 1
    for colour in range(3):
        pixels = source[0, colour, 2:, :4, 4:8].flatten().tolist()
        mean, scale = statistics.fmean(pixels), statistics.stdev(pixels) + 1e-6
        expected = [(pixel - mean) / scale for pixel in pixels]
        assert token[:, colour].tolist() == pytest.approx(expected, abs=1e-5)


def test_flat_cubes_are_zero_not_infinite() -> None:
    assert not make().of(torch.full((1, 3, 4, 8, 12), 0.5)).any()


def test_error_is_the_mean_square_per_token_in_float32() -> None:
    prediction, target = torch.randn(2, 5, 96).bfloat16(), torch.randn(2, 5, 96)
    error = make().error(prediction, target)
    assert error.shape == (2, 5)
    assert error.dtype == torch.float32
    expected = torch.nn.functional.mse_loss(prediction[1, 3].float(), target[1, 3])
    torch.testing.assert_close(error[1, 3], expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_restore_and_layout_give_the_video_back(normalize: bool) -> None:
    source, target = video(), make(normalize=normalize)
    cubes = target.restore(target.of(source), source)
    torch.testing.assert_close(target.to_video(cubes), source, atol=1e-5, rtol=0)


def test_restore_takes_the_statistics_of_the_tokens_asked_for() -> None:
    source, target = video(), make()
    index = torch.tensor([[3, 8, 11], [0, 1, 10]])
    picked = index[..., None].expand(-1, -1, 96)
    some = target.restore(target.of(source).gather(1, picked), source, index)
    torch.testing.assert_close(some, make(normalize=False).of(source).gather(1, picked))


def test_half_precision_videos_are_standardised_in_float32() -> None:
    source = video().bfloat16()
    torch.testing.assert_close(make().of(source), make().of(source.float()))
