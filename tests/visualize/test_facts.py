"""Numbers of a window, against values worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from tatscli.masking.plan import MaskPlan
from tatscli.visualize.facts import entropy, facts_of, hidden_words, insight_of, mean_insight
from tatscli.visualize.viewer import MaskedWindow
from tests.visualize.fakes import GRID, window

VISIBLE = [0, 1, 5, 21]


def masked(score_N=None, error_M=None) -> MaskedWindow:
    plan = MaskPlan.from_visible(torch.tensor([VISIBLE]), 32)
    return MaskedWindow(plan, score_N, error_M=error_M)


def still(number=1):
    one = window()
    return replace(one, number=number, motion=replace(one.motion, missing_B=torch.ones(1) > 0))


def test_entropy_is_one_for_blind_choice_and_zero_for_certainty():
    assert entropy(torch.full((1568,), 1 / 1568)) == pytest.approx(1, abs=1e-6)
    assert entropy(torch.eye(32)[3]) == 0
    half = torch.zeros(64)
    half[:8] = 1 / 8
    assert entropy(half) == pytest.approx(math.log(8) / math.log(64))


def test_motion_of_visible_tokens_against_chance():
    """Tokens 5 and 21 move alike, all others are still: 3.2 places of 32 are the top tenth."""
    found = insight_of(window(), masked(), GRID)
    still_share = (3.2 - 2) / 30
    assert found["motion_share"] == pytest.approx((2 + 2 * still_share) / 4, abs=1e-4)
    assert found["motion_lift"] == pytest.approx((2 + 2) / 4 / (4 / 32))
    assert found["motion_hidden"] == 0  # both that move are seen
    assert found["visible_per_slice"] == [3, 1]
    assert found["entropy"] is None


def test_without_vectors_there_is_no_motion_to_speak_of():
    found = insight_of(still(), masked(torch.full((32,), 1 / 32)), GRID)
    for name in ("motion_share", "motion_lift", "motion_hidden"):
        assert found[name] is None
    assert hidden_words(found) == "no motion to compare with"
    assert found["entropy"] == 1


def test_motion_of_hidden_tokens_counts_the_unpredicted_too():
    plan = MaskPlan(torch.tensor([[0, 5]]), torch.tensor([[1, 2]]))
    found = insight_of(window(), MaskedWindow(plan, None), GRID)
    assert found["motion_hidden"] == pytest.approx((2 / 30) / (4 / 32), abs=1e-4)
    assert hidden_words(found) == "motion of hidden tokens 0.53 x chance"


def test_means_are_over_the_windows_that_have_a_number():
    sure = torch.zeros(32)
    sure[0] = 1
    results = [masked(torch.full((32,), 1 / 32)), masked(sure)]
    found = mean_insight([window(), still()], results, GRID)
    assert found["entropy"] == 0.5
    assert found["motion_lift"] == 8 and found["motion_hidden"] == 0
    assert found["visible_per_slice"] == [3, 1]
    assert mean_insight([still()], results[:1], GRID)["motion_share"] is None


def test_facts_name_every_token():
    bare = facts_of(window(), masked(), GRID)
    assert bare["visible"] == VISIBLE and bare["frames"] == [0, 4, 8, 12]
    assert sorted(bare["visible"] + bare["predict"]) == list(range(32))
    assert not {"probability", "error"} & bare.keys()
    full = facts_of(window(), masked(torch.full((32,), 1 / 32), torch.arange(28) / 28), GRID)
    assert full["probability"] == [0.03125] * 32
    assert len(full["error"]) == len(full["predict"]) and full["error"][14] == 0.5
