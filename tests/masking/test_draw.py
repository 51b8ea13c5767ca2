"""Counts are exact decimals; draws follow the policy."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.errors import RecipeError
from tatscli.masking.draw import gumbel_top_k, share_count, visible_count
from tatscli.masking.random import RandomMasker
from tatscli.recipe.schema import RandomMask


@pytest.mark.parametrize(("ratio", "count"), [(0.85, 235), (0.9, 156), (0.95, 78), (0.75, 392)])
def test_visible_counts_of_the_published_ratios(ratio: float, count: int) -> None:
    assert visible_count(1568, ratio) == count


def test_a_random_mask_rounds_what_it_shows_or_what_it_hides() -> None:
    for rounding, shown in (("shown", 156), ("hidden", 157)):
        config = RandomMask(kind="random", ratio=0.9, rounding=rounding)
        assert RandomMasker(config, grid=(8, 14, 14), width=1).visible == shown


@given(st.integers(1, 20000), st.integers(1, 999))
def test_counts_are_those_of_exact_arithmetic(total: int, thousandths: int) -> None:
    ratio = thousandths / 1000
    shown = total * (1000 - thousandths) // 1000
    if shown:
        assert visible_count(total, ratio) == shown
    else:
        with pytest.raises(RecipeError, match="none of"):
            visible_count(total, ratio)
    assert share_count(total, ratio) == Fraction(thousandths * total, 1000) // 1


def test_whole_products_survive_binary_floating_point() -> None:
    assert int(1000 * (1 - 0.9)) == 99  # what plain arithmetic makes of it
    assert visible_count(1000, 0.9) == 100
    assert int(0.29 * 100) == 28
    assert share_count(100, 0.29) == 29


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_draws_are_different_tokens_whatever_the_policy(tokens: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, tokens))
    logits = torch.randn(3, tokens) * data.draw(st.sampled_from([0.0, 1.0, 1000.0]))
    drawn = gumbel_top_k(logits.log_softmax(-1), count, Draws(0))
    assert all(len(set(row)) == count for row in drawn.tolist())


def test_draws_without_replacement_have_the_plackett_luce_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    pairs = gumbel_top_k(p.log().expand(40_000, -1), 2, Draws(0))
    for first in range(4):
        for second in range(4):
            if first == second:
                continue
            share = ((pairs[:, 0] == first) & (pairs[:, 1] == second)).float().mean().item()
            expected = (p[first] * p[second] / (1 - p[first])).item()
            assert share == pytest.approx(expected, abs=0.01)
