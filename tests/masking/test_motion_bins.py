"""`motion_bins` shows exact shares of the moving half and of the other."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.errors import DataError
from tatscli.masking.motion_bins import MotionBinsMasker
from tests.fields import motion_of
from tests.masking.kinds import clip_of, mask_of, motion_on


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    thousandths=st.integers(50, 950),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]),
)
def test_exactly_the_share_of_the_visible_tokens_moves(
    grid: tuple[int, int, int], thousandths: int, share: float
) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    visible = tokens * (1000 - thousandths) // 1000
    assume(visible)
    masker = mask_of("motion_bins", grid, thousandths / 1000, share=share)
    motion = motion_on(grid, 3)
    plan = masker.plan(clip_of(grid, motion=motion), Draws(0))
    wanted = round(Fraction(str(share)) * visible)
    upper, lower = tokens // 2, tokens - tokens // 2
    wanted = min(wanted, upper)
    wanted = max(wanted, visible - lower)
    for clip in range(3):
        speed = motion.magnitude_BN(grid[0])[clip].tolist()
        moving = set(sorted(range(tokens), key=lambda n: -speed[n])[:upper])
        assert len(moving & set(plan.visible_BK[clip].tolist())) == wanted


def test_within_a_half_every_token_is_shown_equally_often() -> None:
    grid = (2, 2, 5)
    motion = motion_on(grid, 1)
    many = motion.each(lambda tensor: tensor.expand(20_000, *tensor.shape[1:]))
    masker = mask_of("motion_bins", grid, 0.6, share=0.25)
    plan = masker.plan(clip_of(grid, motion=many), Draws(0))
    shown = (~plan.hidden_BN(20)).float().mean(dim=0)
    order = motion.magnitude_BN(2)[0].argsort(descending=True)
    torch.testing.assert_close(shown[order[:10]], torch.full((10,), 0.2), atol=0.015, rtol=0)
    torch.testing.assert_close(shown[order[10:]], torch.full((10,), 0.6), atol=0.015, rtol=0)


def test_a_still_clip_is_divided_by_site() -> None:
    grid = (4, 3, 4)
    still = motion_of(torch.zeros(8, 8, 3, 4, 2))
    masker = mask_of("motion_bins", grid, 0.5, share=1.0)  # shows the upper half whole
    shown = ~masker.plan(clip_of(grid, motion=still), Draws(0)).hidden_BN(48)
    by_slice = shown.reshape(8, 4, 12)
    assert (by_slice == by_slice[:, :1]).all()
    assert len(by_slice[:, 0].unique(dim=0)) > 1


def test_a_clip_without_motion_is_a_tube_as_far_as_the_count_allows() -> None:
    grid = (4, 3, 4)
    motion = motion_on(grid, 40)
    motion.missing_B[::2] = True
    masker = mask_of("motion_bins", grid, 0.7)  # 14 = 3 whole sites and 2 tokens of a fourth
    shown = ~masker.plan(clip_of(grid, motion=motion), Draws(0)).hidden_BN(48)
    times = shown.reshape(40, 4, 12).sum(dim=1).sort(dim=1, descending=True).values
    tube = torch.tensor([4, 4, 4, 2] + [0] * 8)
    assert (times[::2] == tube).all()
    assert not (times[1::2] == tube).all(dim=1).any()
    assert len(shown[::2].unique(dim=0)) > 10


def test_it_cannot_do_without_motion() -> None:
    masker = mask_of("motion_bins", (2, 2, 2), 0.5)
    assert isinstance(masker, MotionBinsMasker) and masker.needs_motion
    with pytest.raises(DataError, match=r"`mask.kind: motion_bins` needs motion"):
        masker.plan(clip_of((2, 2, 2), 1), Draws(0))
