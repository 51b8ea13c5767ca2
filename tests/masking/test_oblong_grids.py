"""No mask or selection takes slices for square: wide and tall grids, by properties of each kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tests.fields import motion_of
from tests.masking.kinds import (
    MASKS,
    PREDICTS,
    Grid,
    clip_of,
    clip_on,
    mask_of,
    motion_on,
    selection_of,
    tokens_on,
)

PLACED = ["block", "simulated", "mgm", "mgm_advect", "schedule"]
"""Masks that know where in a slice a token lies."""

SHAPES = st.sampled_from([(3, 8), (8, 3), (4, 6), (1, 24), (24, 1), (2, 12)])
OBLONG = st.tuples(st.integers(2, 6), st.integers(9, 16)).flatmap(
    lambda sides: st.sampled_from([sides, sides[::-1]])
)


def reshaped(motion: MotionField, grid: Grid) -> MotionField:
    """Lay the sites of each slice out in other rows and columns; their order stays."""
    return motion_of(motion.field_BThw2.reshape(*motion.field_BThw2.shape[:2], *grid[1:], 2))


@pytest.mark.parametrize("kind", sorted(set(MASKS) - set(PLACED)))
@settings(max_examples=12)
@given(one=SHAPES, other=SHAPES, seed=st.integers(0, 99))
def test_masks_that_look_at_no_places_do_not_see_the_shape(
    kind: str, one: tuple[int, int], other: tuple[int, int], seed: int
) -> None:
    tokens, plans = tokens_on((4, *one), 3), []
    for grid in ((4, *one), (4, *other)):
        clip = clip_of(grid, tokens=tokens, motion=reshaped(motion_on((4, *one), 3), grid))
        plans.append(mask_of(kind, grid, 0.75).plan(clip, Draws(seed)))
    assert torch.equal(plans[0].visible_BK, plans[1].visible_BK)
    assert torch.equal(plans[0].predict_BM, plans[1].predict_BM)


@pytest.mark.parametrize("kind", sorted(set(PREDICTS) - {"running_cell"}))
@settings(max_examples=12)
@given(one=SHAPES, other=SHAPES, seed=st.integers(0, 99))
def test_selections_that_look_at_no_places_do_not_see_the_shape(
    kind: str, one: tuple[int, int], other: tuple[int, int], seed: int
) -> None:
    tokens, chosen = tokens_on((4, *one), 3), []
    plan = mask_of("random", (4, *one), 0.75).plan(clip_of((4, *one), 3), Draws(0))
    for grid in ((4, *one), (4, *other)):
        clip = clip_of(grid, tokens=tokens, motion=reshaped(motion_on((4, *one), 3), grid))
        selection = selection_of(kind, grid, plan.predict_BM.shape[1])
        chosen.append(selection.select(plan, clip, Draws(seed)))
    assert torch.equal(chosen[0].predict_BM, chosen[1].predict_BM)


def hidden_of(plan: MaskPlan, grid: Grid) -> Tensor:
    """Return what is hidden, (B, t, h, w)."""
    return plan.hidden_BN(grid[0] * grid[1] * grid[2]).unflatten(1, grid)


@pytest.mark.parametrize("kind", ["block", "simulated", "mgm"])
@settings(max_examples=20)
@given(sides=OBLONG, seed=st.integers(0, 99))
def test_a_rectangle_is_one_in_rows_and_columns(
    kind: str, sides: tuple[int, int], seed: int
) -> None:
    grid = (3, *sides)
    changes = {"noise": 0} | ({"pull": 0} if kind == "mgm" else {})
    masker = mask_of(kind, grid, 0.4, **changes)
    plan = masker.plan(clip_on(grid, 4), Draws(seed))
    for one in hidden_of(plan, grid).flatten(0, 1):
        places = one.nonzero()
        box = (places.amax(0) - places.amin(0) + 1).prod()
        # Full, but for two opposite sides that are begun.
        assert box - len(places) <= 2 * max(sides)


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.parametrize("sides", [(3, 16), (16, 3)])
def test_no_site_is_out_of_reach(kind: str, sides: tuple[int, int]) -> None:
    grid = (3, *sides)
    masker = mask_of(kind, grid, 0.2)
    plan = masker.plan(clip_on(grid, 3000), Draws(0))
    hidden_Bthw = hidden_of(plan, grid)
    assert hidden_Bthw.any(dim=0).all() and not hidden_Bthw.all(dim=0).any()


@settings(max_examples=20)
@given(sides=OBLONG, data=st.data())
def test_a_rectangle_lies_where_it_moves(sides: tuple[int, int], data: st.DataObject) -> None:
    grid = (3, *sides)
    row, column = (data.draw(st.integers(0, side - 1)) for side in sides)
    speed = torch.zeros(4, 6, *sides)
    speed[:, :, row, column] = 30
    motion = motion_of(torch.zeros(4, 6, *sides, 2), speed_BThw=speed)
    plan = mask_of("mgm", grid, 0.2).plan(clip_of(grid, motion=motion), Draws(0))
    assert hidden_of(plan, grid)[:, :, row, column].all()


@pytest.mark.parametrize("sides", [(3, 16), (16, 3)])
@pytest.mark.parametrize("back", [False, True])
def test_a_carried_mask_goes_along_the_long_side(sides: tuple[int, int], back: bool) -> None:
    """By a token a slice; what comes in from outside changes the ranking of the rest a little."""
    grid, along = (4, *sides), (2 if sides[0] > sides[1] else 3)
    field = torch.zeros(40, 4, *sides, 2)
    step = -1 if back else 1
    field[..., 0 if along == 3 else 1] = 16.0 * step
    masker = mask_of("mgm_advect", grid, 0.75)
    plan = masker.plan(clip_of(grid, motion=motion_of(field)), Draws(0))
    hidden = hidden_of(plan, grid)
    came = hidden[:, :-1].roll(step, dims=along)
    inner = (hidden[:, 1:] == came).narrow(along, 0 if back else 1, 15)
    assert inner.float().mean() > 0.95
    assert (hidden[:, 1:] == hidden[:, :-1]).float().mean() < 0.8


@settings(max_examples=30)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), slices=st.integers(1, 5))
def test_cells_run_alike_on_every_even_grid(rows: int, columns: int, slices: int) -> None:
    grid = (slices, 2 * rows, 2 * columns)
    tokens = grid[0] * grid[1] * grid[2]
    plan = MaskPlan.from_visible(torch.zeros(3, 1, dtype=torch.int64), tokens)
    selection = selection_of("running_cell", grid, tokens - 1)
    chosen = selection.select(plan, clip_of(grid, 3), Draws(0)).predict_BM
    for clip in chosen.tolist():
        fitting = []
        for start in range(4):
            count = 0
            for token in clip:
                slice_, site = divmod(token, grid[1] * grid[2])
                row, column = divmod(site, grid[2])
                count += (row % 2 * 2 + column % 2 + slice_ + start) % 4 < 2
            fitting.append(count)
        # The pattern holds half of all tokens, the hidden ones but for one.
        assert max(fitting) >= selection.budget - 1
