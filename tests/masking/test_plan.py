"""`MaskPlan` refuses what is no plan at once, and finds broken ones among many without reading."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tatscli.data import clip as clip_module
from tatscli.data.clip import pick
from tatscli.masking import plan as plan_module
from tatscli.masking.plan import MaskPlan
from tatscli.nn.positions import Positions
from tests.masking.kinds import clip_of


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


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are as on a GPU: nobody looks at their values."""
    for module in (plan_module, clip_module):
        monkeypatch.setattr(module, "readable", lambda _: False)


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_plan_is_refused_where_its_values_are_known(why: str) -> None:
    visible, predict = BROKEN[why]
    with pytest.raises(ValueError, match=r"visible_BK|predict_BM") as caught:
        MaskPlan(index(GOOD[0], visible), index(GOOD[1], predict)).check(6)
    assert "beyond" not in why or "0 to 5, of 6 tokens" in str(caught.value)
    if "beyond" not in why:  # all else is known without the number of tokens
        with pytest.raises(ValueError, match=r"visible_BK|predict_BM"):
            MaskPlan(index(GOOD[0], visible), index(GOOD[1], predict))


@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_plan_is_found_among_good_ones(why: str, far_away: None) -> None:
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

    def checked() -> MaskPlan | None:
        try:
            plan = MaskPlan(index(visible), index(predict))
            plan.check(tokens)
        except ValueError:
            return None
        return plan

    fine = (
        visible == sorted(set(visible))
        and predict == sorted(set(predict))
        and not set(visible) & set(predict)
        and all(0 <= token < tokens for token in visible + predict)
    )
    assert (checked() is not None) == fine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "readable", lambda _: False)
        patch.setattr(clip_module, "readable", lambda _: False)
        assert MaskPlan(index(visible), index(predict)).faulty_B(tokens).tolist() == [not fine]


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        (index([0, 0, 1]), "visible_BK must rise .* without repeats; in clip 0 0 follows 0"),
        (index([0, 1], [2, 99]), "visible_BK holds the index 99; allowed is 0 to 5, of 6 tokens"),
        (index([0, -1]), "visible_BK holds the index -1; allowed is 0 to 5"),
        (index([0, 1])[0], r"visible_BK must be int64 of shape \(B, count\).*of shape \(2,\)"),
        (index([0, 1]).bool(), "visible_BK must be int64 .*got bool"),
    ],
)
def test_visible_tokens_that_make_no_plan_are_refused(visible: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskPlan.from_visible(visible, 6)


def test_a_repeat_is_counted_where_nobody_looks(far_away: None) -> None:
    """It does not turn into another token that nobody asked to show."""
    plan = MaskPlan.from_visible(index([0, 0, 1], [3, 1, 2]), 6)
    assert plan.visible_BK[0].tolist() == [0, 0, 1]
    assert plan.faulty_B(6).tolist() == [True, False]


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (torch.tensor([[True, False, True]]), "hidden_BN shows 1 tokens in clip 0; .* show 2"),
        (torch.tensor([True, False, False]), r"hidden_BN must be bool of shape \(B, N\)"),
        (torch.tensor([[1, 0, 0]]), "hidden_BN must be bool .* got int64"),
    ],
)
def test_a_mask_that_makes_no_plan_is_refused(hidden: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskPlan.from_hidden(hidden, 2)


def test_every_use_of_a_plan_names_tokens_that_are_not_there() -> None:
    """How many there are the plan is not told; whoever asks for pixels or positions is."""
    plan = MaskPlan(index([0, 99]), index([1, 2]))
    clip = clip_of((1, 2, 5), 1)
    for use in (
        lambda: plan.hidden_BN(10),
        lambda: clip.unit(plan.visible_BK),
        lambda: clip.cubes(plan.visible_BK),
        lambda: Positions((1, 2, 5), 8)(plan.visible_BK),
        lambda: pick(torch.zeros(2, 10, 3), index([0, 99], [1, 2])),  # not the next clip's
    ):
        with pytest.raises(ValueError, match="99; allowed is 0 to 9, of 10 tokens"):
            use()
    with pytest.raises(ValueError, match="index_BK is of 1 clips, and there are 2"):
        pick(torch.zeros(2, 10, 3), index([0, 1]))
    for negative in (lambda: clip.unit(index([-1])), lambda: Positions((1, 2, 5), 8)(index([-1]))):
        with pytest.raises(ValueError, match="holds the index -1"):
            negative()


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
