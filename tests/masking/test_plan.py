"""`MaskPlan` refuses what would corrupt training without a word."""

from __future__ import annotations

import pytest
import torch

from tatscli.masking.plan import MaskPlan, gather_tokens


def index(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64)


@pytest.mark.parametrize(
    ("visible", "predict", "message"),
    [
        (index([1, 0]), index([2, 3]), "ascending"),
        (index([0, 1]), index([3, 2]), "ascending"),
        (index([0, 0]), index([2, 3]), "without repeats"),
        (index([0, 2]), index([2, 3]), "disjoint"),
        (index([-1, 2]), index([3, 4]), "non-negative"),
        (index([0, 1]).int(), index([2, 3]), "int64"),
        (index([0, 1])[0], index([2, 3])[0], "shape"),
        (index([0], [1]), index([2, 3]), "2 clips and predict_BM 1"),
        (torch.empty(1, 0, dtype=torch.int64), index([0]), "got 0 and 1"),
        (index([0]), torch.empty(1, 0, dtype=torch.int64), "got 1 and 0"),
    ],
)
def test_broken_plans_are_refused(
    visible: torch.Tensor, predict: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MaskPlan(visible, predict)


def test_visible_tokens_in_any_order_make_a_sorted_partition() -> None:
    plan = MaskPlan.from_visible(index([4, 1], [0, 3]), 5)
    assert plan.visible_BK.tolist() == [[1, 4], [0, 3]]
    assert plan.predict_BM.tolist() == [[0, 2, 3], [1, 2, 4]]


def test_the_boolean_mask_is_true_where_hidden() -> None:
    plan = MaskPlan.from_visible(index([1, 4]), 5)
    hidden = plan.hidden_BN(5)
    assert hidden.tolist() == [[True, False, True, True, False]]
    again = MaskPlan.from_hidden(hidden, 2)
    assert torch.equal(again.visible_BK, plan.visible_BK)


def test_hidden_need_not_be_predicted() -> None:
    plan = MaskPlan(index([1, 4]), index([2]))
    assert plan.hidden_BN(5).sum() == 3


def test_gathering_picks_whole_tokens() -> None:
    tokens = torch.arange(12.0).reshape(1, 4, 3)
    assert gather_tokens(tokens, index([3, 1])).tolist() == [[[9, 10, 11], [3, 4, 5]]]
