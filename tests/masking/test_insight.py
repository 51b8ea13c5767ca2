"""Motion and slice numbers: by hand, at chance, with ties and without motion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatscli.data.motion import MotionField
from tatscli.masking.insight import mask_insight, top_share, visible_per_slice
from tatscli.masking.plan import MaskPlan
from tests.fields import motion_of

GRID = (2, 2, 5)


def motion(speed_BN: torch.Tensor) -> MotionField:
    """Give every token of both frames of its tubelet the same speed."""
    B = speed_BN.shape[0]
    field = torch.zeros(B, 4, 2, 5, 2)
    field[..., 0] = speed_BN.reshape(B, 2, 2, 5).repeat_interleave(2, dim=1)
    return motion_of(field)


def numbers_of(plan: MaskPlan, motion: MotionField | None = None) -> dict[str, float]:
    """Read the numbers, which are scalars on the device."""
    numbers = mask_insight(plan, grid=GRID, motion=motion)
    assert all(value.shape == () for value in numbers.values())
    return {name: value.item() for name, value in numbers.items()}


def plan(*visible: list[int]) -> MaskPlan:
    return MaskPlan.from_visible(torch.tensor(visible), 20)


def test_numbers_by_hand() -> None:
    speed = torch.zeros(1, 20)
    speed[0, 3], speed[0, 12], speed[0, 15] = 4.0, 2.0, 1.0
    numbers = numbers_of(plan([3, 12, 15, 0]), motion(speed))
    assert numbers == pytest.approx(
        {
            "motion_missing": 0,
            "visible_slice_min": 2,
            "visible_slice_max": 2,
            "visible_slice_0": 2,
            "visible_slice_1": 2,
            "motion_share": 0.5,  # the top tenth of 20 tokens are 3 and 12
            "motion_lift": (7 / 4) / (7 / 20),
            "motion_hidden": 0,
        }
    )


def test_clips_without_motion_do_not_count() -> None:
    speed = torch.zeros(2, 20)
    speed[0, 3] = speed[0, 4] = 1.0
    both = numbers_of(plan([3, 4], [0, 1]), motion(speed))
    assert (both["motion_share"], both["motion_lift"]) == pytest.approx((1, 10))
    assert both["motion_hidden"] == 0


def test_where_no_clip_moves_there_are_no_numbers_of_motion() -> None:
    names = ("motion_share", "motion_lift", "motion_hidden")
    still = numbers_of(plan([3, 4]), motion(torch.zeros(1, 20)))
    assert all(math.isnan(still[name]) for name in names)
    assert still["motion_missing"] == 0 and still["visible_slice_0"] == 2
    speed = torch.zeros(2, 20)
    speed[0, 3] = 1.0
    unknown = motion(speed)
    unknown.missing_B.fill_(True)
    unknown.fallback_B.copy_(torch.tensor([True, False]))
    numbers = numbers_of(plan([3], [4]), unknown)
    assert all(math.isnan(numbers[name]) for name in names)
    assert numbers["motion_missing"] == 0.5
    assert not {"motion_missing", *names} & set(numbers_of(plan([3], [4])))


def test_a_clip_whose_motion_is_unknown_does_not_count_beside_one_that_moves() -> None:
    speed = torch.zeros(2, 20)
    speed[0, 3], speed[1, 9] = 1.0, 500.0
    field = motion(speed)
    field.missing_B[1] = True
    numbers = numbers_of(plan([3], [9]), field)
    assert (numbers["motion_share"], numbers["motion_lift"]) == (1, 20)


def test_hidden_tokens_are_those_not_visible_whether_predicted_or_not() -> None:
    speed = torch.zeros(2, 20)
    speed[0, 3], speed[0, 12], speed[1, 7] = 4.0, 2.0, 1.0
    some = MaskPlan(torch.tensor([[3, 5], [0, 1]]), torch.tensor([[12], [2]]))
    numbers = numbers_of(some, motion(speed))
    expected = ((2 / 18) / (6 / 20) + (1 / 18) / (1 / 20)) / 2
    assert numbers["motion_hidden"] == pytest.approx(expected)


def test_slices_are_counted_by_clip() -> None:
    assert visible_per_slice(torch.tensor([[0, 1, 9], [9, 10, 19]]), 2, 10).tolist() == [
        [3, 0],
        [1, 2],
    ]
    numbers = numbers_of(plan([0, 1, 9], [9, 10, 19]))
    assert numbers == {
        "visible_slice_min": 0.5,
        "visible_slice_max": 2.5,
        "visible_slice_0": 2,
        "visible_slice_1": 1,
    }


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_blind_choice_scores_the_share_exactly_whatever_the_ties(
    tokens: int, levels: int, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(0, levels, (3, tokens), generator=generator).float()
    weight = top_share(magnitude, share)
    torch.testing.assert_close(weight.mean(1), torch.full((3,), share))
    assert ((weight >= 0) & (weight <= 1 + 1e-5)).all()
    for row in range(3):  # never less for a faster token
        order = magnitude[row].argsort()
        faster = magnitude[row][order].diff() > 0
        assert (weight[row][order].diff()[faster] >= 0).all()


def test_random_masks_are_at_chance() -> None:
    speed = torch.rand(2000, 20)
    visible = torch.rand(2000, 20).topk(5, dim=1).indices
    numbers = numbers_of(MaskPlan.from_visible(visible, 20), motion(speed))
    assert numbers["motion_share"] == pytest.approx(0.1, abs=0.01)
    assert numbers["motion_lift"] == pytest.approx(1, abs=0.03)
    assert numbers["motion_hidden"] == pytest.approx(1, abs=0.03)


def test_long_clips_tell_the_emptiest_and_fullest_slice_alone() -> None:
    plan = MaskPlan(torch.tensor([[0, 1, 2]]), torch.tensor([[3, 4]]))
    names = mask_insight(plan, grid=(17, 1, 1)).keys()
    assert set(names) == {"visible_slice_min", "visible_slice_max"}
    assert len(mask_insight(plan, grid=(16, 1, 1))) == 18
