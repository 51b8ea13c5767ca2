"""`still` shows the first slice and what moves most after it, an exact number of tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tatscli.data.motion import MotionField
from tatscli.draws import Draws
from tests.fields import motion_of
from tests.masking.kinds import Grid, clip_of, mask_of, motion_on

GRID: Grid = (4, 3, 5)
SITES, TOKENS = 15, 60


def shown(motion: MotionField, ratio: float, seed: int = 0, grid: Grid = GRID) -> torch.Tensor:
    return mask_of("still", grid, ratio).plan(clip_of(grid, motion=motion), Draws(seed)).visible_BK


@given(hidden=st.integers(1, TOKENS - 1), seed=st.integers(0, 5))
def test_the_first_slice_comes_first_then_what_moves_most(hidden: int, seed: int) -> None:
    motion = motion_on(GRID, 2, seed)
    visible = shown(motion, hidden / 64, seed)
    for clip, tokens in enumerate(visible.tolist()):
        speed = motion.speed_BThw[clip].reshape(4, 2, SITES).mean(dim=1).flatten().tolist()
        first = [token for token in tokens if token < SITES]
        later = [token for token in tokens if token >= SITES]
        assert len(first) == min(SITES, len(tokens))
        fastest = sorted(range(SITES, TOKENS), key=lambda token: -speed[token])
        assert later == sorted(fastest[: len(later)])


def test_chance_decides_between_equals_and_within_the_first_slice() -> None:
    still = motion_of(torch.zeros(2000, 8, 3, 5, 2))
    few = shown(still, 0.9)  # six of the fifteen of the first slice
    assert few.max() < SITES
    share = torch.bincount(few.flatten(), minlength=SITES) / 2000
    torch.testing.assert_close(share, torch.full((SITES,), 6 / 15), atol=0.05, rtol=0)
    more = shown(still, 0.5)[:, SITES:] - SITES  # fifteen of the other 45
    share = torch.bincount(more.flatten(), minlength=45) / 2000
    torch.testing.assert_close(share, torch.full((45,), 15 / 45), atol=0.05, rtol=0)


def test_a_clip_without_motion_is_a_tube_beside_one_that_moves() -> None:
    motion = motion_on(GRID, 2)
    motion.missing_B[0] = True
    visible = shown(motion, 0.6)  # 24 = six tubes of four
    tubes = (visible[0] % SITES).bincount(minlength=SITES)
    assert sorted(tubes[tubes > 0].tolist()) == [4] * 6
    assert visible[1, :SITES].tolist() == list(range(SITES))


def test_one_moving_thing_is_followed_through_the_clip() -> None:
    field = torch.zeros(1, 8, 3, 5, 2)
    for frame in range(8):
        field[0, frame, 1, frame // 2] = 3.0
    visible = shown(motion_of(field), 1 - 18 / TOKENS)
    assert visible[0, SITES:].tolist() == [SITES + 6, 2 * SITES + 7, 3 * SITES + 8]
