"""Views: frames against torch's float resize, motion against a mean over pixels, both flipped."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tatscli.data.view import View, corner_crop, random_resized_crop, spatial_crop
from tests.clips import pan

SCALES = [1, 0.875, 0.75, 0.66]
SIZES = st.tuples(st.integers(8, 256), st.integers(8, 256))


def box_of(view: View) -> tuple[int, int, int, int]:
    return view.top, view.left, view.crop_height, view.crop_width


@st.composite
def views(draw: st.DrawFn) -> View:
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    tall, wide = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    sides = st.integers(2, 64)  # torch's byte resize cannot make a single pixel
    size = draw(st.tuples(sides, sides))
    return View(height, width, top, left, tall, wide, size, draw(st.booleans()))


def cells(view: View, cell: int) -> tuple[int, int]:
    return -(-view.height // cell), -(-view.width // cell)


def fields(view: View, cell: int, frames: int = 2) -> Tensor:
    return torch.randn(frames, *cells(view, cell), 2, generator=torch.Generator().manual_seed(3))


@given(views(), st.sampled_from([4, 16]), st.integers(1, 6), st.integers(1, 6))
def test_uniform_motion_stays_exact_and_scales(view: View, cell: int, rows: int, cols: int) -> None:
    field = torch.tensor([3.0, -2.0]).expand(2, *cells(view, cell), 2)
    got, speed = view.motion(field.movedim(-1, 1)[None], cell=cell, grid=(rows, cols))
    sign = -1 if view.flip else 1
    expected = torch.tensor(
        [sign * 3 * view.size[1] / view.crop_width, -2 * view.size[0] / view.crop_height]
    )
    assert got.shape == (2, rows, cols, 2)
    torch.testing.assert_close(got, expected.expand_as(got), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(speed, got.norm(dim=-1), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(views(), st.sampled_from([4, 16]), st.integers(1, 5), st.integers(1, 5))
def test_motion_equals_the_mean_over_pixels(view: View, cell: int, rows: int, cols: int) -> None:
    """Spread the field over pixels, cut each token's exact area out of them pixel by pixel."""
    steps = torch.stack([fields(view, cell), 2 * fields(view, cell).flip(0)])
    scale_y, scale_x = view.size[0] / view.crop_height, view.size[1] / view.crop_width
    scaled = steps.double() * torch.tensor([scale_x, scale_y], dtype=torch.float64)
    # What is averaged: x and y of the displacement, and the length of the way.
    field = torch.cat([scaled.sum(0), scaled.norm(dim=-1).sum(0)[..., None]], dim=-1)
    pixels = field.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    pixels = pixels[:, : view.height, : view.width]
    expected = torch.zeros(2, rows, cols, 3, dtype=torch.float64)
    for row in range(rows):
        for col in range(cols):
            total = 0.0
            y0 = view.top + view.crop_height * row / rows
            y1 = view.top + view.crop_height * (row + 1) / rows
            x0 = view.left + view.crop_width * col / cols
            x1 = view.left + view.crop_width * (col + 1) / cols
            for y in range(view.height):
                for x in range(view.width):
                    share = max(0, min(y1, y + 1) - max(y0, y)) * max(
                        0, min(x1, x + 1) - max(x0, x)
                    )
                    if share:
                        expected[:, row, col] += share * pixels[:, y, x]
                        total += share
            expected[:, row, col] /= total
    if view.flip:
        expected = expected.flip(2)
        expected[..., 0] *= -1
    got, speed = view.motion(steps.movedim(-1, 2), cell=cell, grid=(rows, cols))
    torch.testing.assert_close(got.double(), expected[..., :2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(speed.double(), expected[..., 2], rtol=1e-4, atol=1e-4)


@given(views())
def test_flip_commutes_with_the_view(view: View) -> None:
    """Mirroring the result equals viewing the mirrored video through the mirrored crop."""
    mirrored = replace(view, left=view.width - view.left - view.crop_width, flip=False)
    plain = replace(view, flip=False)
    flipped = replace(view, flip=True)
    video = torch.randint(0, 256, (2, 3, view.height, view.width), dtype=torch.uint8)
    assert torch.equal(flipped.frames(video), plain.frames(video).flip(-1))
    difference = flipped.frames(video).int() - mirrored.frames(video.flip(-1)).int()
    assert difference.abs().max() <= 1  # fixed-point rounding of the resize

    # One pixel a cell, so that cells mirror exactly.
    field = fields(view, 1)
    turned = field.flip(2) * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(
        flipped.motion(field.movedim(-1, 1)[None], cell=1, grid=(3, 3)),
        mirrored.motion(turned.movedim(-1, 1)[None], cell=1, grid=(3, 3)),
        rtol=1e-4,
        atol=1e-4,
    )


@given(views())
def test_frames_equal_a_float_resize_of_the_crop(view: View) -> None:
    video = torch.randint(0, 256, (2, 3, view.height, view.width), dtype=torch.uint8)
    cut = video[
        :,
        :,
        view.top : view.top + view.crop_height,
        view.left : view.left + view.crop_width,
    ]
    expected = functional.interpolate(cut.float(), view.size, mode="bilinear", antialias=True)
    if view.flip:
        expected = expected.flip(-1)
    got = view.frames(video.contiguous(memory_format=torch.channels_last))
    assert got.dtype == torch.uint8
    assert got.shape == (2, 3, *view.size)
    assert (got.float() - expected).abs().max() <= 1.01
    assert torch.equal(got, view.frames(video))  # whatever the memory layout


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "way"), [((48, 32), (2, -3)), ((16, 96), (6, -1))])
def test_a_moving_picture_moves_as_its_field_says(
    size: tuple[int, int], way: tuple[int, int], flip: bool
) -> None:
    """What a pan shows in the view is there again in the next frame, as far on as the motion says.

    The scales of x and y differ, and whole pixels stay whole pixels.
    """
    before, after = pan((4, -2), frames=2, height=64, width=96)
    video = torch.from_numpy(np.stack([before, after])).permute(0, 3, 1, 2)
    view = View(64, 96, 8, 16, 32, 64, size, flip)
    field = torch.tensor([4.0, -2.0]).expand(1, 4, 6, 2).permute(0, 3, 1, 2)[None]
    motion = view.motion(field, cell=16, grid=(2, 2))[0][0]
    x, y = (-way[0] if flip else way[0]), way[1]
    assert torch.equal(motion, torch.tensor([float(x), float(y)]).expand(2, 2, 2))
    seen = view.frames(video).int()
    came = seen[0].roll((y, x), dims=(1, 2))
    down, across = abs(y) + 2, abs(x) + 2  # the rim sees other pixels
    inner = (slice(None), slice(down, -down), slice(across, -across))
    assert (seen[1] - came)[inner].abs().max() <= 2
    assert (seen[1] - seen[0])[inner].abs().float().mean() > 5


@pytest.mark.parametrize(
    "change", [{"left": 60}, {"top": -1}, {"crop_width": 0}, {"size": (32, 0)}]
)
def test_impossible_crops_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="leaves the picture"):
        replace(View(48, 64, 0, 0, 48, 48, (32, 32)), **change)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="48 x 64"):
        View(48, 64, 0, 0, 48, 48, (32, 32)).frames(torch.zeros(1, 3, 64, 48, dtype=torch.uint8))


def test_corner_crop_uses_every_pair_and_place_and_no_other() -> None:
    rng = random.Random(0)
    drawn = [
        corner_crop(256, 340, (224, 224), scales=SCALES, flip=0.0, rng=rng) for _ in range(6000)
    ]
    sides = [256, 224, 192, 168]
    pairs = {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert {(view.crop_height, view.crop_width) for view in drawn} == pairs
    places = {(view.top, view.left) for view in drawn if view.crop_height == view.crop_width == 192}
    tops, lefts = [0, 16, 32, 48, 64], [0, 37, 74, 111, 148]
    even = {(tops[i], lefts[j]) for i in (0, 2, 4) for j in (0, 2, 4)}
    odd = {(tops[i], lefts[j]) for i in (1, 3) for j in (1, 3)}
    assert places == even | odd
    assert not any(view.flip for view in drawn)


def test_flip_probability_is_kept() -> None:
    rng = random.Random(0)
    flips = [corner_crop(20, 30, (8, 8), scales=[1], flip=0.3, rng=rng).flip for _ in range(4000)]
    assert sum(flips) / 4000 == pytest.approx(0.3, abs=0.03)


@given(st.integers(1, 400), st.integers(1, 400), SIZES, st.integers(0, 2**32))
def test_random_views_stay_inside(
    height: int, width: int, size: tuple[int, int], seed: int
) -> None:
    rng = random.Random(seed)
    for view in (
        corner_crop(height, width, size, scales=SCALES, flip=0.5, rng=rng),
        random_resized_crop(
            height, width, size, scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5, rng=rng
        ),
    ):
        assert 0 <= view.top < view.top + view.crop_height <= height
        assert 0 <= view.left < view.left + view.crop_width <= width


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 128)])
def test_random_resized_crop_covers_its_ranges(size: tuple[int, int]) -> None:
    """Aspects are those of undistorted pixels, and as often narrower as wider."""
    rng = random.Random(0)
    drawn = [
        random_resized_crop(
            256, 340, size, scale=(0.2, 0.5), ratio=(0.75, 4 / 3), flip=0.5, rng=rng
        )
        for _ in range(3000)
    ]
    areas = torch.tensor([view.crop_height * view.crop_width / (256 * 340) for view in drawn])
    aspects = torch.tensor([view.crop_width / view.crop_height for view in drawn])
    aspects *= size[0] / size[1]
    assert 0.195 < areas.min() < 0.21
    assert 0.49 < areas.max() < 0.505
    assert areas.mean().item() == pytest.approx(0.35, abs=0.01)
    assert 0.74 < aspects.min() < 0.76
    assert 1.31 < aspects.max() < 1.35
    assert aspects.log().mean().item() == pytest.approx(0.0, abs=0.02)
    assert {view.top == 0 for view in drawn} == {True, False}


@pytest.mark.parametrize(
    ("height", "width", "size", "box"),
    [
        (20, 1000, (8, 8), (0, 486, 20, 27)),
        (20, 1000, (96, 160), (0, 478, 20, 44)),  # 4/3 x 5/3 of the height
        (1000, 20, (96, 160), (492, 0, 16, 20)),  # 3/4 x 5/3
    ],
)
def test_random_resized_crop_of_a_strip_falls_back_to_an_allowed_aspect(
    height: int, width: int, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    view = random_resized_crop(
        height, width, size, scale=(0.9, 1.0), ratio=(0.75, 4 / 3), flip=0.0, rng=random.Random(0)
    )
    assert box_of(view) == box


def test_square_views_are_drawn_as_ever() -> None:
    """Recorded when views could only be square: seeds must go on to mean the same crops."""
    rng = random.Random(7)
    drawn = [corner_crop(240, 320, (224, 224), scales=SCALES, flip=0.5, rng=rng) for _ in range(4)]
    drawn += [
        random_resized_crop(
            240, 320, (224, 224), scale=(0.08, 1.0), ratio=(0.75, 4 / 3), flip=0.5, rng=rng
        )
        for _ in range(4)
    ]
    assert [(*box_of(view), view.flip) for view in drawn] == [
        (0, 110, 180, 210, True),
        (0, 40, 240, 240, False),
        (0, 110, 240, 210, False),
        (41, 0, 158, 180, True),
        (2, 141, 217, 169, True),
        (7, 147, 143, 154, False),
        (34, 74, 106, 91, True),
        (11, 13, 206, 215, False),
    ]


def test_corner_crops_of_an_oblong_view_are_shares_of_the_largest() -> None:
    rng = random.Random(0)
    drawn = [
        corner_crop(256, 320, (96, 160), scales=SCALES, flip=0.0, rng=rng) for _ in range(4000)
    ]
    talls, wides = [192, 168, 144, 126], [320, 280, 240, 211]
    pairs = {(talls[i], wides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert {(view.crop_height, view.crop_width) for view in drawn} == pairs
    assert {view.top for view in drawn if view.crop_height == 192} == {0, 16, 32, 48, 64}
    assert {view.left for view in drawn if view.crop_width == 240} == {0, 20, 40, 60, 80}


@given(st.integers(1, 400), st.integers(1, 400), SIZES)
def test_the_crop_of_evaluation_is_the_largest_that_is_not_distorted(
    height: int, width: int, size: tuple[int, int]
) -> None:
    view = spatial_crop(height, width, size, crop=0, crops=1)
    tall, wide = view.crop_height, view.crop_width
    assert tall == height or wide == width
    # One side follows from the other, to half a pixel.
    assert abs(wide * size[0] - tall * size[1]) <= max(size) / 2 or min(tall, wide) == 1


@pytest.mark.parametrize(
    ("height", "width", "size", "boxes"),
    [
        (48, 64, (32, 32), [(0, 0, 48, 48), (0, 8, 48, 48), (0, 16, 48, 48)]),
        (64, 48, (32, 32), [(0, 0, 48, 48), (8, 0, 48, 48), (16, 0, 48, 48)]),
        (50, 50, (32, 32), [(0, 0, 50, 50)] * 3),
        (96, 320, (96, 160), [(0, 0, 96, 160), (0, 80, 96, 160), (0, 160, 96, 160)]),
        # A wide view of a less wide frame has room above and below.
        (120, 160, (96, 160), [(0, 0, 96, 160), (12, 0, 96, 160), (24, 0, 96, 160)]),
        (120, 160, (160, 80), [(0, 0, 120, 60), (0, 50, 120, 60), (0, 100, 120, 60)]),
        (48, 80, (96, 160), [(0, 0, 48, 80)] * 3),
    ],
)
def test_spatial_crops_are_spaced_along_the_side_that_has_room(
    height: int, width: int, size: tuple[int, int], boxes: list[tuple[int, int, int, int]]
) -> None:
    found = [spatial_crop(height, width, size, crop=i, crops=3) for i in range(3)]
    assert [box_of(view) for view in found] == boxes
    assert box_of(spatial_crop(height, width, size, crop=0, crops=1)) == boxes[1]
    assert all(view.size == size for view in found)


def bilinear(row: np.ndarray, length: int) -> np.ndarray:
    """Resize along the first axis between the two nearest values, half-pixel centres."""
    scale = len(row) / length
    places = [max(0.0, (i + 0.5) * scale - 0.5) for i in range(length)]
    lower = [min(int(place), len(row) - 1) for place in places]
    upper = [min(low + 1, len(row) - 1) for low in lower]
    share = np.array([place - low for place, low in zip(places, lower, strict=True)])
    share = share.reshape(-1, *[1] * (row.ndim - 1))
    return row[lower] * (1 - share) + row[upper] * share


def test_without_antialiasing_a_crop_is_plain_bilinear() -> None:
    """OpenCV's and `interpolate`'s resize, which VideoMAE's fine-tuning and test have."""
    picture = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    video = torch.from_numpy(picture).permute(2, 0, 1)[None]
    view = spatial_crop(60, 90, (28, 28), crop=2, crops=3, antialias=False)
    cut = picture[:, 30:].astype(float)
    expected = bilinear(bilinear(cut, 28).swapaxes(0, 1), 28).swapaxes(0, 1)
    got = view.frames(video)[0].permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() <= 1  # rounding of bytes
    smooth = replace(view, antialias=True).frames(video)[0].permute(1, 2, 0).numpy()
    assert np.abs(smooth - expected).std() > 10
