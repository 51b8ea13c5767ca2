"""`MaskPlan` refuses what is no plan at once, and finds broken ones among many without reading."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tatscli.masking.plan import MaskPlan


def index(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64)


@pytest.mark.parametrize(
    ("visible", "predict", "message"),
    [
        (index([0, 1]).int(), index([2, 3]), "visible_BK must be int64"),
        (index([0, 1]), index([2, 3]).float(), "predict_BM must be int64"),
        (index([0, 1])[0], index([2, 3]), r"visible_BK must be .* of shape \(B, count\)"),
        (index([0, 1]), index([2, 3])[0], r"predict_BM must be .* of shape \(B, count\)"),
        (index([0], [1]), index([2, 3]), "2 clips and predict_BM 1"),
        (torch.empty(1, 0, dtype=torch.int64), index([0]), "got 0 and 1"),
        (index([0]), torch.empty(1, 0, dtype=torch.int64), "got 1 and 0"),
    ],
)
def test_wrong_shapes_and_types_are_refused(visible: Tensor, predict: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskPlan(visible, predict)


GOOD = ([1, 4], [0, 2])
BROKEN = {
    "visible not ascending": ([4, 1], [0, 2]),
    "predicted not ascending": ([1, 4], [2, 0]),
    "visible twice": ([1, 1], [0, 2]),
    "predicted twice": ([1, 4], [2, 2]),
    "visible and predicted": ([1, 4], [0, 4]),
    "visible beyond the clip": ([1, 6], [0, 2]),
    "predicted beyond the clip": ([1, 4], [0, 6]),
    "far beyond": ([1, 4], [0, 2**40]),
    "visible negative": ([-1, 4], [0, 2]),
    "predicted negative": ([1, 4], [-3, 2]),
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_plan_is_found_among_good_ones(why: str) -> None:
    visible, predict = BROKEN[why]
    plan = MaskPlan(index(GOOD[0], visible, GOOD[0]), index(GOOD[1], predict, GOOD[1]))
    assert plan.faulty_B(6).tolist() == [False, True, False]


def test_how_many_tokens_there_are_is_the_callers_to_say() -> None:
    plan = MaskPlan(index([1, 4], [0, 5]), index([0, 2], [1, 2]))
    assert plan.faulty_B(6).tolist() == [False, False]
    assert plan.faulty_B(5).tolist() == [False, True]


@given(
    st.integers(1, 4).flatmap(
        lambda count: st.tuples(
            *[st.lists(st.integers(-2, 7), min_size=count, max_size=count)] * 2, st.integers(1, 7)
        )
    )
)
def test_the_rules_are_those_of_plain_python(drawn: tuple[list[int], list[int], int]) -> None:
    visible, predict, tokens = drawn
    fine = (
        visible == sorted(set(visible))
        and predict == sorted(set(predict))
        and not set(visible) & set(predict)
        and all(0 <= token < tokens for token in visible + predict)
    )
    assert MaskPlan(index(visible), index(predict)).faulty_B(tokens).tolist() == [not fine]


def test_visible_tokens_in_any_order_make_a_sorted_partition() -> None:
    plan = MaskPlan.from_visible(index([4, 1], [0, 3]), 5)
    assert plan.visible_BK.tolist() == [[1, 4], [0, 3]]
    assert plan.predict_BM.tolist() == [[0, 2, 3], [1, 2, 4]]
    assert not plan.faulty_B(5).any()


def test_the_boolean_mask_is_true_where_hidden() -> None:
    plan = MaskPlan.from_visible(index([1, 4]), 5)
    hidden = plan.hidden_BN(5)
    assert hidden.tolist() == [[True, False, True, True, False]]
    again = MaskPlan.from_hidden(hidden, 2)
    assert torch.equal(again.visible_BK, plan.visible_BK)


def test_hidden_need_not_be_predicted() -> None:
    plan = MaskPlan(index([1, 4]), index([2]))
    assert plan.hidden_BN(5).sum() == 3
    assert not plan.faulty_B(5).any()
