"""`block` and `simulated`: rectangles against a loop, and what they do over time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.block import BlockMasker
from tatscli.masking.simulated import SimulatedMasker
from tatscli.recipe import schema
from tests.masking.kinds import WIDTH, Grid, clip_of

GRID = (4, 9, 12)


def block(grid: Grid = GRID, **settings: Any) -> BlockMasker:
    return BlockMasker(schema.BlockMask(kind="block", **settings), grid=grid, width=WIDTH)


def simulated(grid: Grid = GRID, **settings: Any) -> SimulatedMasker:
    config = schema.SimulatedMask(kind="simulated", **settings)
    return SimulatedMasker(config, grid=grid, width=WIDTH)


def hidden(masker: BlockMasker, clips: int, seed: int = 0) -> torch.Tensor:
    plan = masker.plan(clip_of(masker.grid, clips), Draws(seed))
    return plan.hidden_BN(masker.tokens).reshape(clips, *masker.grid)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_sites_are_ranked_by_the_signed_distance_to_the_nearest_rim(
    rows: int, columns: int, blocks: int, seed: int
) -> None:
    assume(max(blocks, 2) <= rows * columns)
    masker = block((1, rows, columns), ratio=0.6, blocks=blocks, noise=0)
    centre = torch.randn(1, 1, blocks, 2, generator=torch.Generator().manual_seed(seed)) * 3
    half = torch.rand(1, blocks, 2, generator=torch.Generator().manual_seed(seed + 1)) * 4 + 0.1
    masker.centres_BTK2 = lambda *_: centre  # type: ignore[method-assign]
    masker.draw_halves_BK2 = lambda *_: half  # type: ignore[method-assign]
    found = masker.rank_BTS(clip_of(masker.grid, 1), torch.zeros(1, 1, rows * columns), Draws(0))
    found = found[0, 0].tolist()
    for row in range(rows):
        for column in range(columns):
            depths = []
            for k in range(blocks):
                x, y = column - (columns - 1) / 2, row - (rows - 1) / 2
                across = half[0, k, 0].item() - abs(x - centre[0, 0, k, 0].item())
                down = half[0, k, 1].item() - abs(y - centre[0, 0, k, 1].item())
                depths.append(min(across, down))
            assert found[row * columns + column] == pytest.approx(max(depths), abs=1e-5)


def test_rectangles_have_the_area_and_aspects_asked_for() -> None:
    masker = block((1, 40, 40), ratio=0.3, blocks=2, aspect=(0.5, 2.0))
    width, height = (2 * masker.draw_halves_BK2(4000, torch.device("cpu"), Draws(0))).unbind(-1)
    torch.testing.assert_close(width * height, torch.full_like(width, masker.hidden / 2))
    aspect = (width / height).log() / math.log(2)
    assert aspect.min() >= -1.001 and aspect.max() <= 1.001
    assert aspect.mean().abs() < 0.05 and abs(aspect.std() - 1 / math.sqrt(3)) < 0.03


def test_a_rectangle_longer_than_the_picture_leaves_its_area_to_the_other_side() -> None:
    masker = block((1, 4, 12), ratio=0.75, aspect=(0.1, 10))
    width, height = (2 * masker.draw_halves_BK2(500, torch.device("cpu"), Draws(0))).unbind(-1)
    assert width.max() <= 12 and height.max() <= 4 + 1e-5
    torch.testing.assert_close(width * height, torch.full_like(width, 36.0))


def test_a_block_hides_the_same_sites_of_every_slice_and_lies_anywhere() -> None:
    found = hidden(block(ratio=0.25, noise=0.01), 3000)
    for t in range(1, GRID[0]):
        assert torch.equal(found[:, t], found[:, 0])
    middle = found[:, 0].float().mean(dim=0)
    assert (middle > 0.02).all()  # every site is hidden at times
    assert middle[4, 6] > middle[0, 0]  # and those inside more often than corners


def test_one_block_is_one_piece() -> None:
    for one in hidden(block(ratio=0.4, noise=0), 50)[:, 0]:
        places = one.nonzero()
        box = (places.amax(0) - places.amin(0) + 1).prod()
        # A full rectangle, but for a last side that is begun.
        assert box - len(places) <= 2 * max(GRID[1:])


def test_several_blocks_lie_apart() -> None:
    spread = hidden(block((1, 30, 30), ratio=0.02, blocks=3, noise=0), 200)[:, 0].float()
    columns = spread.amax(dim=1).sum(dim=1)
    assert columns.mean() > 6.5  # 18 sites in three places; a single block has at most 6 columns


def test_a_simulated_block_moves_smoothly() -> None:
    masker = simulated((16, 14, 14), ratio=0.3)
    half = masker.draw_halves_BK2(500, torch.device("cpu"), Draws(0))
    path = masker.centres_BTK2(half, clip_of(masker.grid, 500), Draws(1))[:, :, 0]
    assert path.abs().max() <= 6.5
    step = path.diff(dim=1).norm(dim=-1)
    assert step.mean() > 0.2  # it moves
    turn = path.diff(n=2, dim=1).norm(dim=-1)
    assert turn.max() < 1 and turn.mean() < 0.25  # without jumps


def test_a_bezier_curve_ends_at_its_outer_points() -> None:
    masker = simulated((5, 3, 3), ratio=0.5)
    path = masker.centres_BTK2(torch.ones(1, 1, 2), clip_of(masker.grid, 1), Draws(4))[0, :, 0]
    points = Draws(4).uniform((1, 1, 4, 2), path.device)[0, 0] * 2 - 1
    torch.testing.assert_close(path[0], points[0])
    torch.testing.assert_close(path[-1], points[3])
    # De Casteljau's midpoint of a cubic.
    torch.testing.assert_close(path[2], points.T @ torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)


def test_more_rectangles_than_sites_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"`mask.blocks: 5` is more than the 4 tokens"):
        block((2, 2, 2), blocks=5, ratio=0.5)
    with pytest.raises(ValueError, match="must go from low to high"):
        schema.BlockMask(kind="block", aspect=(2, 1))
