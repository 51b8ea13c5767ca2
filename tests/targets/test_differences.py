"""Differences between frames: against loops over the video, signs, the clip's end, the floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.targets.differences import across_cubes, mean_over_valid, normalised, within_cube

Grid = tuple[int, int, int]
OBLONG: Grid = (3, 2, 4)


def video(grid: Grid, tubelet: int, patch: int, *, clips: int = 2, seed: int = 0) -> Tensor:
    """Noise in uint8, (B, T, H, W, 3)."""
    t, h, w = grid
    generator = torch.Generator().manual_seed(seed)
    shape = (clips, t * tubelet, h * patch, w * patch, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def cut(video_BTHW3: Tensor, grid: Grid, tubelet: int, patch: int) -> Tensor:
    """Cut all cubes, one at a time: (B, N, P)."""
    cubes = [
        video_BTHW3[:, t * tubelet :, row * patch :, column * patch :][:, :tubelet, :patch, :patch]
        for t in range(grid[0])
        for row in range(grid[1])
        for column in range(grid[2])
    ]
    return torch.stack([cube.flatten(1) for cube in cubes], dim=1)


def expected(
    clip_THW3: np.ndarray,
    token: int,
    grid: Grid,
    tubelet: int,
    patch: int,
    gaps: list[int],
    *,
    across: bool,
) -> tuple[list[float], list[bool]]:
    """One token's differences and which frames are valid, from the video, value by value."""
    slices, height, width = grid
    top, left = token // width % height * patch, token % width * patch
    first = token // (height * width) * tubelet
    values, valid = [], []
    for gap in gaps:
        for earlier in range(first, first + tubelet):
            later = earlier + gap
            if not across and later >= first + tubelet:
                continue
            known = later < slices * tubelet
            valid.append(known)
            for y in range(top, top + patch):
                for x in range(left, left + patch):
                    for c in range(3):
                        here = clip_THW3[earlier, y, x, c] / 255
                        values.append(clip_THW3[later, y, x, c] / 255 - here if known else 0.0)
    return values, valid


def some(grid: Grid, clips: int, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(math.prod(grid), generator=generator) for _ in range(clips)]
    return torch.stack(orders)[:, :count]


def pick(cubes_BNP: Tensor, index_BM: Tensor) -> Tensor:
    return torch.stack([clip[index] for clip, index in zip(cubes_BNP, index_BM, strict=True)])


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("tubelet", "gaps"),
    [(1, [1]), (1, [2, 1]), (2, [1]), (2, [1, 2, 3]), (2, [5]), (4, [3, 1]), (4, [1, 4, 6, 11])],
)
def test_across_cubes_equals_loops_over_the_video(
    tubelet: int, gaps: list[int], pixels: torch.dtype
) -> None:
    source = video(OBLONG, tubelet, patch=2)
    cubes, index = cut(source, OBLONG, tubelet, 2), some(OBLONG, 2, 17)
    if pixels == torch.float32:
        cubes = cubes / 255
    difference, valid = across_cubes(cubes, index, OBLONG, tubelet, gaps)
    assert difference.dtype == torch.float32
    assert difference.shape == (2, 17, len(gaps) * tubelet * 12)
    assert valid.shape == (2, 17, len(gaps) * tubelet)
    for b in range(2):
        for m, token in enumerate(index[b].tolist()):
            values, known = expected(
                source[b].numpy(), token, OBLONG, tubelet, 2, gaps, across=True
            )
            assert valid[b, m].tolist() == known
            np.testing.assert_allclose(difference[b, m].numpy(), values, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("tubelet", "gaps"), [(2, [1]), (4, [1]), (4, [3, 1, 2])])
def test_within_cube_equals_loops_over_the_video(
    tubelet: int, gaps: list[int], pixels: torch.dtype
) -> None:
    source = video(OBLONG, tubelet, patch=2)
    cubes, index = cut(source, OBLONG, tubelet, 2), some(OBLONG, 2, 17)
    if pixels == torch.float32:
        cubes = cubes / 255
    difference = within_cube(pick(cubes, index), tubelet, gaps)
    assert difference.dtype == torch.float32
    for b in range(2):
        for m, token in enumerate(index[b].tolist()):
            values, known = expected(
                source[b].numpy(), token, OBLONG, tubelet, 2, gaps, across=False
            )
            assert all(known)
            np.testing.assert_allclose(difference[b, m].numpy(), values, atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 3),
    st.data(),
)
def test_shapes_and_where_both_forms_meet(
    grid: Grid, tubelet: int, patch: int, data: st.DataObject
) -> None:
    frames = grid[0] * tubelet
    if frames == 1:
        return
    gaps = data.draw(st.lists(st.integers(1, frames - 1), min_size=1, max_size=3))
    index = some(grid, 2, data.draw(st.integers(1, math.prod(grid))))
    cubes = cut(video(grid, tubelet, patch), grid, tubelet, patch)
    difference, valid = across_cubes(cubes, index, grid, tubelet, gaps)
    per_frame = patch * patch * 3
    assert difference.shape == (*index.shape, len(gaps) * tubelet * per_frame)
    assert valid.shape == (*index.shape, len(gaps) * tubelet)
    assert not difference.unflatten(-1, (-1, per_frame))[~valid].any()
    by_gap = difference.unflatten(-1, (len(gaps), tubelet, per_frame))
    for g, gap in enumerate(gaps):
        assert valid.unflatten(-1, (len(gaps), tubelet))[:, :, g].sum() == sum(
            token // (grid[1] * grid[2]) * tubelet + f + gap < frames
            for token in index.flatten().tolist()
            for f in range(tubelet)
        )
        if gap < tubelet:
            inside = within_cube(pick(cubes, index), tubelet, gap)
            assert inside.shape == (*index.shape, (tubelet - gap) * per_frame)
            assert torch.equal(by_gap[:, :, g, : tubelet - gap].flatten(2), inside)
            assert valid.any(-1).all()


def test_sizes_of_the_usual_cube() -> None:
    cubes = torch.rand(1, 8, 1536)
    assert within_cube(cubes, 2, 1).shape == (1, 8, 768)
    difference, valid = across_cubes(cubes, torch.arange(8)[None], (2, 2, 2), 2, 1)
    assert difference.shape == (1, 8, 1536)
    assert valid.tolist() == [[[True, True]] * 4 + [[True, False]] * 4]


def test_a_still_clip_is_zero() -> None:
    source = video(OBLONG, 2, patch=2)[:, :1].expand(-1, 6, -1, -1, -1)
    cubes, index = cut(source, OBLONG, 2, 2) / 255, some(OBLONG, 2, 24)
    difference, valid = across_cubes(cubes, index, OBLONG, 2, [1, 3])
    for still in (difference, within_cube(pick(cubes, index), 2, 1)):
        assert not still.any()
        assert not normalised(still, 0.02).any()
    assert not normalised(difference, 0.02, valid_BMF=valid).any()


def moving_edge() -> Tensor:
    """Bright from the left up to column t + 1: one more column lights up each frame."""
    column = torch.arange(8)
    lit_TW = column <= torch.arange(6)[:, None] + 1
    return lit_TW[None, :, None, :, None].expand(1, 6, 4, 8, 3).float()


def test_a_moving_bright_edge_is_positive_where_it_arrives_and_negative_backwards() -> None:
    index = torch.arange(24)[None]
    for source, sign in ((moving_edge(), 1), (moving_edge().flip(1), -1)):
        cubes = cut(source, OBLONG, 2, 2)
        inside = within_cube(cubes, 2, 1).reshape(3, 2, 4, 2, 2, 3)  # t, row, column, y, x, colour
        across, valid = across_cubes(cubes, index, OBLONG, 2, 1)
        across = across.reshape(3, 2, 4, 2, 2, 2, 3)  # t, row, column, frame, y, x, colour
        for t in range(3):
            for f in range(2):
                frame = t * 2 + f
                # The column that changes between this frame and the next, forwards or backwards.
                changed = frame + 2 if sign > 0 else 6 - frame
                picture = torch.zeros(8)
                if frame < 5:
                    picture[changed] = sign
                picture = picture.reshape(1, 4, 1, 2, 1).expand(2, 4, 2, 2, 3)
                assert torch.equal(across[t, :, :, f], picture)
                if f == 0:
                    assert torch.equal(inside[t], picture)
        assert valid.sum() == 24 * 2 - 8


def test_only_the_cubes_asked_for_and_their_successors_are_read() -> None:
    cubes = cut(video(OBLONG, 2, patch=2), OBLONG, 2, 2) / 255
    index = torch.tensor([[1, 6], [3, 22]])
    straight, valid = across_cubes(cubes, index, OBLONG, 2, 1)
    assert valid.tolist() == [[[True, True], [True, True]], [[True, True], [True, False]]]
    needed = torch.zeros(2, 24, dtype=torch.bool)
    needed[0, [1, 9, 6, 14]] = True  # the next slice is 8 tokens on
    needed[1, [3, 11, 22]] = True
    cubes[~needed] = torch.nan
    assert torch.equal(across_cubes(cubes, index, OBLONG, 2, 1)[0], straight)


def test_without_later_frames_a_token_is_not_valid_and_has_no_error() -> None:
    cubes = torch.rand(1, 24, 12)
    difference, valid = across_cubes(cubes, torch.arange(24)[None], OBLONG, 1, [1, 2])
    assert valid[0].tolist() == [[True, True]] * 8 + [[True, False]] * 8 + [[False, False]] * 8
    error = mean_over_valid((torch.rand(1, 24, 24) - difference).square(), valid)
    assert (error[0, :16] > 0).all()
    assert not error[0, 16:].any()
    assert torch.equal(valid.any(-1)[0], error[0] > 0)


def test_what_is_predicted_for_invalid_frames_does_not_count() -> None:
    torch.manual_seed(0)
    valid = torch.tensor([[[True, False], [True, True], [False, False]]])
    error = torch.rand(1, 3, 24, requires_grad=True)
    mean = mean_over_valid(error, valid)
    values = [error[0, 0, :12].mean(), error[0, 1].mean(), torch.tensor(0.0)]
    torch.testing.assert_close(mean[0], torch.stack(values))
    mean.sum().backward()
    assert error.grad is not None
    assert torch.equal(error.grad.unflatten(-1, (2, -1)).any(-1), valid)


@pytest.mark.parametrize("per_colour", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_normalised_equals_numpy(per_colour: bool, masked: bool) -> None:
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 0.1, 0.001]).view(3, 1)  # lively, between, below the floor
    difference = torch.randn(2, 3, 36) * scale + 0.3
    valid = torch.rand(2, 3, 3) > 0.4
    valid[0, 0], valid[1, 1] = True, False
    difference = difference.unflatten(-1, (3, -1)).where(valid[..., None], 0.0).flatten(2)
    result = normalised(
        difference, 0.02, valid_BMF=valid if masked else None, per_colour=per_colour
    ).numpy()
    for b in range(2):
        for m in range(3):
            frames = difference[b, m].double().numpy().reshape(3, 4, 3)  # frame, pixel, colour
            kept = valid[b, m].numpy() if masked else np.ones(3, dtype=bool)
            want = np.zeros_like(frames)
            for colours in [[0], [1], [2]] if per_colour else [[0, 1, 2]]:
                values = frames[kept][:, :, colours]
                if values.size:
                    divisor = max(values.std(ddof=1), 0.02)
                    scaled = (values - values.mean()) / divisor
                    want[np.ix_(kept, range(4), colours)] = scaled
            np.testing.assert_allclose(result[b, m], want.ravel(), atol=1e-5, rtol=1e-5)


def test_the_floor_keeps_noise_small() -> None:
    torch.manual_seed(0)
    noise = torch.randn(1, 1, 768) * 0.002
    assert normalised(noise, 0.02).std() == pytest.approx(0.1, rel=0.1)
    assert normalised(noise, 1e-6).std() == pytest.approx(1, rel=0.01)
    assert normalised(noise * 100, 0.02).std() == pytest.approx(1, rel=0.01)


def test_a_still_colour_is_not_blown_up_beside_a_moving_one() -> None:
    torch.manual_seed(0)
    difference = torch.randn(1, 1, 256, 3) * torch.tensor([0.5, 0.5, 0.02])
    together = normalised(difference.flatten(2), 0.01).reshape(256, 3)
    apart = normalised(difference.flatten(2), 0.01, per_colour=True).reshape(256, 3)
    assert together.std(0)[2] == pytest.approx(0.05, rel=0.2)
    assert apart.std(0)[2] == pytest.approx(1, rel=0.01)


def test_without_a_floor_differences_stay_as_they_are() -> None:
    difference = torch.randn(1, 2, 12)
    assert torch.equal(normalised(difference, None), difference)


def test_autocast_rounds_nothing() -> None:
    cubes, index = torch.rand(2, 24, 24), some(OBLONG, 2, 9)
    straight, valid = across_cubes(cubes, index, OBLONG, 2, [1, 2])
    exact = normalised(straight, 0.02, valid_BMF=valid)
    with torch.autocast("cpu", torch.bfloat16):
        difference, valid = across_cubes(cubes, index, OBLONG, 2, [1, 2])
        assert torch.equal(normalised(difference, 0.02, valid_BMF=valid), exact)
        assert within_cube(cubes, 2, 1).dtype == torch.float32


def test_what_has_no_pair_is_refused() -> None:
    cubes, index = torch.rand(1, 24, 24), torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ValueError, match="a cube of 2 frames has no two that are 2 apart"):
        within_cube(cubes, 2, [1, 2])
    with pytest.raises(ValueError, match="a cube of 2 frames has no two that are 0 apart"):
        within_cube(cubes, 2, 0)
    with pytest.raises(ValueError, match="no gap"):
        within_cube(cubes, 2, [])
    with pytest.raises(ValueError, match="a clip of 6 frames has no two that are 6 apart"):
        across_cubes(cubes, index, OBLONG, 2, 6)
    with pytest.raises(ValueError, match="24 cubes do not fill a grid of 3 x 3 x 4"):
        across_cubes(cubes, index, (3, 3, 4), 2, 1)
    with pytest.raises(ValueError, match="a floor of 0 "):
        normalised(cubes, 0)
