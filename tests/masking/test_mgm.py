"""`mgm` and `mgm_topk`: tracking against plain loops, patches of known motion, symmetry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.masking.mgm import MgmMasker
from tatscli.masking.mgm_advect import MgmAdvectMasker
from tatscli.masking.mgm_topk import MgmTopkMasker
from tatscli.masking.motion_bins import MotionBinsMasker
from tatscli.recipe import schema
from tests.fields import motion_of
from tests.masking.kinds import WIDTH, Grid, clip_of

GRID = (6, 10, 12)


def mgm(grid: Grid = GRID, **settings: Any) -> MgmMasker:
    return MgmMasker(schema.MgmMask(kind="mgm", **settings), grid=grid, width=WIDTH)


def topk(ratio: float = 0.75) -> MgmTopkMasker:
    config = schema.MgmTopkMask(kind="mgm_topk", ratio=ratio)
    return MgmTopkMasker(config, grid=GRID, width=WIDTH)


def advect(ratio: float) -> MgmAdvectMasker:
    config = schema.MgmAdvectMask(kind="mgm_advect", ratio=ratio)
    return MgmAdvectMasker(config, grid=GRID, width=WIDTH)


def bins(ratio: float) -> MotionBinsMasker:
    config = schema.MotionBinsMask(kind="motion_bins", ratio=ratio, share=0.5)
    return MotionBinsMasker(config, grid=GRID, width=WIDTH)


def hidden(masker: Any, motion: MotionField, draws: Draws | None = None) -> Tensor:
    plan = masker.plan(clip_of(masker.grid, motion=motion), draws or Draws(0))
    return plan.hidden_BN(masker.tokens).reshape(-1, *masker.grid)


def centres(
    masker: MgmMasker, half: Tensor, motion: MotionField, draws: Draws | None = None
) -> Tensor:
    return masker.centres_BTK2(half, clip_of(masker.grid, motion=motion), draws or Draws(0))


def patch_motion(
    *, start: tuple[float, float], speed: tuple[float, float], side: int = 3, clips: int = 1
) -> tuple[MotionField, Tensor]:
    """Move a square by `speed` tokens a slice: its motion and where it is, (T, h, w)."""
    T, h, w = GRID
    field = torch.zeros(clips, T, h, w, 2)
    where = torch.zeros(T, h, w, dtype=torch.bool)
    for t in range(T):
        x, y = round(start[0] + t * speed[0]), round(start[1] + t * speed[1])
        where[t, max(0, y) : y + side, max(0, x) : x + side] = True
    field[:, where] = torch.tensor(speed) * 16
    return motion_of(field), where


def loop_path(motion: MotionField, half: Tensor, start: Tensor, base: list[int]) -> Tensor:
    """Follow the motion clip by clip, frame by frame, token by token."""
    _, T, h, w = motion.speed_BThw.shape
    move = (motion.field_BThw2 / 16).tolist()
    B, K, _ = start.shape
    path = torch.zeros(B, T, K, 2)
    for b in range(B):
        for k in range(K):
            for direction in (1, -1):
                x, y = start[b, k].tolist()
                path[b, base[b], k] = start[b, k]
                t = base[b]
                while 0 <= t + direction < T:
                    field = move[b][t + 1 if direction == 1 else t]
                    total, weights = [0.0, 0.0], 0.0
                    for row in range(h):
                        for column in range(w):
                            u, v = field[row][column]
                            at_x, at_y = column - (w - 1) / 2, row - (h - 1) / 2
                            if direction == 1:
                                at_x, at_y = at_x - u, at_y - v
                            if (
                                abs(at_x - x) <= half[b, k, 0].item()
                                and abs(at_y - y) <= half[b, k, 1].item()
                            ):
                                weight = (u * u + v * v) ** 0.5
                                total = [total[0] + weight * u, total[1] + weight * v]
                                weights += weight
                    if weights:
                        x += direction * total[0] / weights
                        y += direction * total[1] / weights
                    x = min(max(x, -(w - 1) / 2), (w - 1) / 2)
                    y = min(max(y, -(h - 1) / 2), (h - 1) / 2)
                    t += direction
                    path[b, t, k] = torch.tensor([x, y])
    return path


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    blocks=st.integers(1, 3),
    tubelet=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_rectangles_follow_as_loops_do(
    grid: tuple[int, int, int], blocks: int, tubelet: int, seed: int
) -> None:
    assume(max(blocks, 2) <= grid[1] * grid[2])
    torch.manual_seed(seed)
    T, h, w = grid
    field = torch.randn(3, T * tubelet, h, w, 2) * 12
    field[torch.rand(3, T * tubelet, h, w) < 0.4] = 0
    motion = motion_of(field)
    masker = mgm(grid, ratio=0.5, blocks=blocks)
    half = torch.rand(3, blocks, 2) * 2 + 0.26
    start = (torch.rand(3, blocks, 2) - 0.5) * torch.tensor([w - 1.0, h - 1.0])
    base = torch.randint(T * tubelet, (3,))
    path = masker._follow(start, half, motion.moves_BTS2, base)
    wanted = loop_path(motion, half, start, base.tolist())
    torch.testing.assert_close(path, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("base", ["energy", "middle", "random"])
@pytest.mark.parametrize("centre", ["sample", "centroid"])
def test_a_moving_patch_stays_hidden(ratio: float, base: str, centre: str) -> None:
    motion, where = patch_motion(start=(1, 1), speed=(1.4, 1.1), clips=64)
    found = hidden(mgm(ratio=ratio, base=base, centre=centre), motion)
    covered = (found & where).sum(dim=(2, 3)) / where.sum(dim=(1, 2))
    assert (covered == 1).float().mean() >= 0.9
    # The very same draws, without looking: a tube hides its share.
    assert hidden(topk(ratio=ratio), motion)[:, where].all()


def test_the_rectangle_moves_as_fast_as_the_patch() -> None:
    motion, _ = patch_motion(start=(1, 1), speed=(1.0, 0.5))
    masker = mgm(ratio=0.1, base="middle", centre="centroid")
    path = centres(masker, torch.full((1, 1, 2), 2.5), motion)[0, :, 0]
    torch.testing.assert_close(path.diff(dim=0), torch.tensor([[1.0, 0.5]]).expand(5, 2))


def test_the_base_slice_is_the_one_with_most_motion() -> None:
    field = torch.zeros(1, 6, 10, 12, 2)
    field[0, 4, 8, 10] = 30.0
    field[0, 1, 2, 2] = 20.0
    path = centres(mgm(ratio=0.1), torch.full((1, 1, 2), 0.4), motion_of(field))
    assert path[0, 4, 0].tolist() == [4.5, 3.5]  # row 8 of 10, column 10 of 12, from the middle


def test_centres_are_drawn_in_proportion_to_the_energy_of_motion() -> None:
    field = torch.zeros(4000, 6, 10, 12, 2)
    field[:, :, 2, 3, 0], field[:, :, 7, 9, 0] = 9.0, 3.0
    motion = motion_of(field)
    half = torch.full((4000, 1, 2), 0.1)
    start = centres(mgm(), half, motion, Draws(0))[:, 0, 0]
    at_first = ((start - torch.tensor([-2.5, -2.5])).abs() < 0.1).all(dim=1).float().mean()
    assert at_first == pytest.approx(0.9, abs=0.02)  # 9 pixels to 3, squared


@pytest.mark.parametrize(("side", "speed"), [(1, 1.0), (2, 0.5), (2, 1.0), (2, 2.0)])
def test_small_fast_things_are_followed_at_their_speed(side: int, speed: float) -> None:
    """`speed` tokens a frame, two frames a slice: content is at another token in each of them."""
    field = torch.zeros(1, 12, 10, 24, 2)
    for frame in range(12):
        x = round(speed * frame)
        field[0, frame, 4 : 4 + side, x : x + side, 0] = speed * 16
    masker = mgm((6, 10, 24), ratio=0.1, base="middle", centre="centroid")
    path = centres(masker, torch.full((1, 1, 2), side / 2), motion_of(field))[0, :, 0]
    torch.testing.assert_close(path[:, 0].diff(), torch.full((5,), 2 * speed))


def test_the_middle_frame_is_the_middle_one() -> None:
    field = torch.zeros(1, 12, 10, 12, 2)
    field[0, 6, 2, 3, 0], field[0, [0, 5, 7, 11], 8, 9, 0] = 1e-3, 50.0
    masker = mgm(base="middle", centre="centroid")
    masker._follow = lambda centre, *_: centre[:, None].expand(-1, 12, -1, -1)  # type: ignore
    centre = centres(masker, torch.ones(1, 1, 2), motion_of(field * 1e4))[0, 0, 0]
    torch.testing.assert_close(centre, torch.tensor([-2.5, -2.5]), atol=0.1, rtol=0)


def test_one_centroid_is_not_several_places() -> None:
    with pytest.raises(
        ValueError, match="`centre: centroid` is a single point, and `blocks: 2` needs several"
    ):
        schema.MgmMask(kind="mgm", centre="centroid", blocks=2)


def test_what_leaves_the_picture_keeps_the_rectangle_at_the_border() -> None:
    motion, _ = patch_motion(start=(6, 4), speed=(3.0, 0.0))
    path = centres(mgm(base="energy", centre="centroid"), torch.full((1, 1, 2), 3.0), motion)
    assert path[..., 0].max() <= 5.5 and path[0, -1, 0, 0] > 3


def test_a_still_clip_is_a_block_that_stands_anywhere() -> None:
    found = hidden(mgm(ratio=0.2), motion_of(torch.zeros(2000, *GRID, 2)))
    for t in range(1, GRID[0]):
        assert torch.equal(found[:, t], found[:, 0])
    assert (found[:, 0].float().mean(dim=0) > 0.01).all()
    still = hidden(topk(), motion_of(torch.zeros(5, *GRID, 2)))
    assert all(torch.equal(still[:, t], still[:, 0]) for t in range(GRID[0]))


def test_tremor_does_not_shape_the_mask() -> None:
    quiet = torch.zeros(1, *GRID, 2)
    quiet[..., 0] = torch.rand(GRID) * 0.01
    flat = hidden(mgm(ratio=0.3, centre="centroid"), motion_of(quiet), Draws(5))
    assert (flat[:, 0] == flat[:, -1]).float().mean() > 0.97  # a few sites tie at the rim
    lone = torch.zeros(2000, *GRID, 2)
    lone[:, :, 0, 0, 0] = 0.02
    still = hidden(mgm(ratio=0.1), motion_of(torch.zeros_like(lone)))
    shaken = hidden(mgm(ratio=0.1), motion_of(lone))
    more = (shaken.float() - still.float()).mean(dim=(0, 1))
    assert more[0, 0] < 0.05


def test_the_order_of_speeds_holds_beside_an_outlier() -> None:
    field = torch.zeros(1, *GRID, 2)
    field[..., 0] = torch.linspace(0, 0.04, 120).reshape(10, 12)
    field[0, :, 0, 0, 0] = 512.0
    found = hidden(topk(ratio=0.5), motion_of(field))[0].flatten(1)
    assert found[:, 0].all() and found[:, 61:].all() and not found[:, 1:61].any()


@pytest.mark.parametrize("make", [mgm, topk])
def test_clips_without_motion_are_tubes_beside_others_that_move(make: Any) -> None:
    field = torch.zeros(2, *GRID, 2)
    motion_one, where = patch_motion(start=(1, 1), speed=(1.4, 1.1))
    field[0] = motion_one.field_BThw2[0]
    field[1] = torch.randn(*GRID, 2) * 20  # what is there must not be read
    motion = motion_of(field, missing_B=torch.tensor([False, True]))
    found = hidden(make(ratio=0.75), motion)
    assert found[0][where].float().mean() > 0.9
    assert all(torch.equal(found[1, t], found[1, 0]) for t in range(GRID[0]))


def test_topk_hides_the_fastest_of_every_slice() -> None:
    torch.manual_seed(0)
    field = torch.randn(4, 12, 10, 12, 2) * 8
    motion = motion_of(field)
    found = hidden(topk(ratio=0.35), motion)
    speed = field.norm(dim=-1).reshape(4, 6, 2, 10, 12).mean(dim=2)
    for b in range(4):
        for t in range(6):
            order = sorted(range(120), key=lambda i: -speed[b, t].flatten()[i].item())
            assert found[b, t].flatten().nonzero().flatten().tolist() == sorted(order[:42])


class Mirrored(Draws):
    """The same noise again, mirrored where it belongs to sites."""

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return self.mirror(super().uniform(shape, device))

    def gumbel(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return self.mirror(super().gumbel(shape, device))

    def mirror(self, noise: Tensor) -> Tensor:
        if noise.shape[-1] % (GRID[1] * GRID[2]):
            return noise
        return noise.reshape(-1, *GRID[1:]).flip(-1).reshape(noise.shape)


@pytest.mark.parametrize("make", [mgm, topk, advect, bins])
def test_a_mirrored_view_has_the_mirrored_mask(make: Any) -> None:
    torch.manual_seed(1)
    field = torch.randn(40, 12, 10, 12, 2) * 10
    field[torch.rand(40, 12, 10, 12) < 0.6] = 0
    flipped = field.flip(3) * torch.tensor([-1.0, 1.0])
    masks = []
    for motion, draws in ((motion_of(field), Draws(11)), (motion_of(flipped), Mirrored(11))):
        masks.append(hidden(make(ratio=0.6), motion, draws))
    assert (masks[0] == masks[1].flip(-1)).float().mean() > 0.999  # but for rounding of sums


def test_a_single_slice_has_nowhere_to_go() -> None:
    field = torch.zeros(2, 1, 4, 4, 2)
    field[:, :, 1, 1] = 9
    assert hidden(mgm((1, 4, 4), ratio=0.5), motion_of(field))[:, 0, 1, 1].all()
