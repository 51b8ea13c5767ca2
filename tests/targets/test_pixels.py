"""Pixel targets: values by hand, errors, and the way back to a picture."""

from __future__ import annotations

import statistics

import pytest
import torch

from tatscli.data.clip import Clip, ClipForm
from tatscli.recipe import schema
from tatscli.targets import build_target
from tatscli.targets.pixels import PixelTarget

FORM = ClipForm((2, 2, 3), 2, 4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
EVERY = torch.arange(12).expand(2, -1)
INDEX = torch.tensor([[3, 8, 11], [0, 1, 10]])


def make(*, normalize: bool = True) -> PixelTarget:
    config = schema.PixelTarget(kind="pixels", normalize=normalize, weight=2.0)
    target = build_target(config, form=FORM)
    assert isinstance(target, PixelTarget)
    return target


def video() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (2, 3, 4, 8, 12), dtype=torch.uint8)


def clip_of(source: torch.Tensor) -> Clip:
    return FORM.clip(source)


def test_values_are_the_pixels_of_the_tokens_asked_for() -> None:
    """In [0, 1], whatever the colours are standardised by for the encoder."""
    source, target = video(), make(normalize=False)
    values = target.of(clip_of(source), INDEX)
    assert values.shape == (2, 3, target.predicts) == (2, 3, 96)
    assert values.dtype == torch.float32
    assert target.weight == 2.0
    for place, (t, row, column) in enumerate([(0, 0, 0), (0, 0, 1), (1, 1, 1)]):
        for f, y, x, c in [(0, 0, 0, 1), (1, 2, 3, 0), (1, 3, 0, 2)]:
            expected = source[1, c, t * 2 + f, row * 4 + y, column * 4 + x] / 255
            assert values[1, place, ((f * 4 + y) * 4 + x) * 3 + c] == expected


def test_each_cube_is_standardised_by_colour_with_the_unbiased_deviation() -> None:
    source = video()
    token = make().of(clip_of(source), EVERY)[0, 7].reshape(32, 3)  # slice 1, row 0, column 1
    for colour in range(3):
        pixels = (source[0, colour, 2:, :4, 4:8] / 255).flatten().tolist()
        mean, scale = statistics.fmean(pixels), statistics.stdev(pixels) + 1e-6
        expected = [(pixel - mean) / scale for pixel in pixels]
        assert token[:, colour].tolist() == pytest.approx(expected, abs=1e-5)


def test_flat_cubes_are_zero_not_infinite() -> None:
    def values(level: int) -> torch.Tensor:
        flat = torch.full((2, 3, 4, 8, 12), level, dtype=torch.uint8)
        return make().of(clip_of(flat), EVERY)

    assert not values(0).any()
    assert not values(255).any()
    assert values(127).abs().max() < 0.1  # the rounding of 127 / 255 over the floor


def test_error_is_the_mean_square_per_token_in_float32() -> None:
    prediction, target = torch.randn(2, 5, 96).bfloat16(), torch.randn(2, 5, 96)
    error = make().error(prediction, target)
    assert error.shape == (2, 5)
    assert error.dtype == torch.float32
    expected = torch.nn.functional.mse_loss(prediction[1, 3].float(), target[1, 3])
    torch.testing.assert_close(error[1, 3], expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_restored_and_joined_values_give_the_video_back(normalize: bool) -> None:
    source, target = video(), make(normalize=normalize)
    clip = clip_of(source)
    restored = FORM.join(target.restore(target.of(clip, EVERY), clip, EVERY))
    torch.testing.assert_close(restored, source / 255, atol=1e-5, rtol=0)


def test_restore_takes_the_statistics_of_the_tokens_asked_for() -> None:
    target, clip = make(), clip_of(video())
    some = target.restore(target.of(clip, INDEX), clip, INDEX)
    torch.testing.assert_close(some, make(normalize=False).of(clip, INDEX))


def test_standardised_values_are_not_those_of_another_token() -> None:
    """What the other tests would not see if `of` passed over the index."""
    target, clip = make(), clip_of(video())
    assert torch.equal(target.of(clip, EVERY)[0, INDEX[0]], target.of(clip, INDEX)[0])
    assert (target.of(clip, INDEX)[0, 0] - target.of(clip, INDEX)[0, 1]).abs().max() > 0.1
