"""`mgm_advect`: a mask carried by whole tokens is shifted, and nothing else happens to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.draws import Draws
from tatscli.masking.mgm_advect import MgmAdvectMasker
from tatscli.recipe import schema
from tests.fields import motion_of
from tests.masking.kinds import WIDTH, clip_of

GRID = (5, 8, 9)


def masker(**settings: Any) -> MgmAdvectMasker:
    config = schema.MgmAdvectMask(kind="mgm_advect", **settings)
    return MgmAdvectMasker(config, grid=GRID, width=WIDTH)


def visible(one: MgmAdvectMasker, field: Tensor, seed: int = 0) -> Tensor:
    plan = one.plan(clip_of(GRID, motion=motion_of(field)), Draws(seed))
    return ~plan.hidden_BN(one.tokens).reshape(len(field), *GRID)


def test_without_motion_it_is_a_tube() -> None:
    shown = visible(masker(ratio=0.75), torch.zeros(50, *GRID, 2))
    assert all(torch.equal(shown[:, t], shown[:, 0]) for t in range(GRID[0]))
    assert (shown[:, 0].float().mean(0) > 0.02).all()


@pytest.mark.parametrize("base", ["middle", "energy", "random"])
@pytest.mark.parametrize(("u", "v"), [(1, 0), (-1, 0), (0, 2), (-1, 1)])
def test_a_pan_by_whole_tokens_carries_the_mask_along(base: str, u: int, v: int) -> None:
    field = torch.zeros(30, *GRID, 2)
    field[..., 0], field[..., 1] = 16.0 * u, 16.0 * v
    shown = visible(masker(ratio=0.8, base=base), field)
    T, h, w = GRID
    inner = total = 0
    for b in range(30):
        for t in range(1, T):
            for y in range(h):
                for x in range(w):
                    if 0 <= x - u < w and 0 <= y - v < h:
                        total += 1
                        inner += shown[b, t, y, x].item() == shown[b, t - 1, y - v, x - u].item()
    # What comes in from outside takes the mask of the base slice, so the count of the rest shifts
    # a little: all but the last sites of the ranking agree.
    assert inner / total > 0.95


def test_content_is_traced_through_every_slice() -> None:
    field = torch.zeros(1, *GRID, 2)
    field[..., 0] = 12.0  # three quarters of a token
    one = masker(ratio=0.5, base="middle")
    moves = motion_of(field).moves_BTS2
    origin = one._origins(moves, torch.tensor([2]))[0].reshape(*GRID, 2)
    for t in range(GRID[0]):
        torch.testing.assert_close(origin[t, 4, 4, 0], torch.tensor(-0.75 * (t - 2)))
    # Far from the border nothing changes vertically; beyond it a site is its own origin.
    assert origin[..., 1].std(dim=2).max() < 1e-6
    assert origin[4, 4, 0].tolist() == [-4.0, 0.5]


def test_a_turning_field_is_followed_through_its_own_path() -> None:
    """Each slice moves otherwise; a loop that looks up vectors one by one is the reference."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 2, 3, 3) * 4
    smooth = torch.nn.functional.interpolate(coarse, GRID[1:], mode="bicubic")
    field = torch.stack([smooth.permute(0, 2, 3, 1) * k for k in (1.0, -0.5, 0.8, 1.2, -1.0)], 1)
    one = masker(ratio=0.5, base="middle")
    moves = motion_of(field).moves_BTS2
    origin = one._origins(moves, torch.tensor([2]))[0].reshape(*GRID, 2)

    def read(values: Tensor, x: float, y: float) -> list[float]:
        h, w = values.shape[:2]
        column, row = min(max(x + (w - 1) / 2, 0), w - 1), min(max(y + (h - 1) / 2, 0), h - 1)
        left, top = min(int(column), w - 2), min(int(row), h - 2)
        a, b = column - left, row - top
        mixed = (1 - b) * ((1 - a) * values[top, left] + a * values[top, left + 1])
        mixed = mixed + b * ((1 - a) * values[top + 1, left] + a * values[top + 1, left + 1])
        return mixed.tolist()

    for x, y in [(0.0, 0.5), (1.0, -0.5), (-2.0, 1.5)]:
        # Forwards: slice 4 to 3 to 2, each against the motion that led there.
        place = [x, y]
        u, v = read(moves[0, 4].unflatten(0, GRID[1:]), *place)
        place = [place[0] - u, place[1] - v]
        u, v = read(moves[0, 3].unflatten(0, GRID[1:]), *place)
        place = [place[0] - u, place[1] - v]
        found = origin[4, int(y + 3.5), int(x + 4)]
        torch.testing.assert_close(found, torch.tensor(place), atol=0.05, rtol=0)


def test_a_patch_keeps_its_part_of_the_mask() -> None:
    T, h, w = GRID
    agree = []
    for seed in range(40):
        field = torch.zeros(1, T, h, w, 2)
        for t in range(T):
            field[0, t, 2:6, t : t + 4, 0] = 16.0
        shown = visible(masker(ratio=0.6), field, seed)[0]
        base = shown[2, 3:5, 3:5]
        agree += [(shown[t, 3:5, t + 1 : t + 3] == base).float().mean().item() for t in (1, 3)]
    assert sum(agree) / len(agree) > 0.9  # by chance 0.52


def test_the_middle_frame_keeps_the_random_mask() -> None:
    torch.manual_seed(0)
    still, moving = torch.zeros(20, *GRID, 2), torch.randn(20, *GRID, 2) * 8
    one = masker(ratio=0.75)
    tube, carried = visible(one, still), visible(one, moving)
    assert torch.equal(tube[:, 2], carried[:, 2])
    assert not torch.equal(tube[:, 1], carried[:, 1])


def test_both_frames_of_a_tubelet_count() -> None:
    field = torch.zeros(1, 10, *GRID[1:], 2)
    field[..., 0] = 8.0  # half a token a frame
    one = masker(ratio=0.75)
    moves = motion_of(field).moves_BTS2
    origin = one._origins(moves, torch.tensor([5]))[0].reshape(10, *GRID[1:], 2)
    torch.testing.assert_close(
        origin[:, 4, 4, 0], torch.tensor([-0.5 * (frame - 5) for frame in range(10)])
    )
