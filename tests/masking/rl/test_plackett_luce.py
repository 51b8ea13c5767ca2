"""Ordered draws without replacement against enumeration."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tatscli.draws import Draws
from tatscli.masking.draw import gumbel_top_k
from tatscli.masking.rl.plackett_luce import drawn_log_prob, next_log_prob


def by_hand(p: list[float], order: tuple[int, ...]) -> float:
    """The probability of an order, draw by draw."""
    left, product = 1.0, 1.0
    for token in order:
        product *= p[token] / left
        left -= p[token]
    return product


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_order_of_five_tokens(count):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -0.4], dtype=torch.float64)
    p = logits.softmax(0).tolist()
    total = 0.0
    for order in permutations(range(5), count):
        index = torch.tensor([[order]])
        found = drawn_log_prob(logits[None, None], index).sum().exp().item()
        assert found == pytest.approx(by_hand(p, order), rel=1e-9)
        total += found
    assert total == pytest.approx(1, abs=1e-9)


def test_the_next_draw():
    p = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    found = next_log_prob(p.log()[None, None], torch.tensor([[[2, 0]]]))[0, 0].exp()
    expected = torch.tensor([0, 0.2, 0, 0.25, 0.15], dtype=torch.float64) / 0.6
    torch.testing.assert_close(found, expected)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=8), st.integers(0, 10_000))
def test_the_level_of_logits_does_not_matter_and_nothing_overflows(logits, seed):
    scores = torch.tensor(logits)[None, None]
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed))
    index = order[None, None, : max(1, len(logits) - 1)]
    found = drawn_log_prob(scores, index)
    assert found.isfinite().all() and (found <= 1e-5).all()
    torch.testing.assert_close(found, drawn_log_prob(scores + 7.0, index), atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_the_formula():
    scores = torch.randn(1, 1, 6, dtype=torch.float64, requires_grad=True)
    order = torch.tensor([[[4, 1, 3]]])
    assert torch.autograd.gradcheck(lambda x: drawn_log_prob(x, order), scores)
    drawn_log_prob(scores, order).sum().backward()
    assert scores.grad.sum().abs() < 1e-12  # only differences of logits count


def test_draws_come_in_this_order_and_frequency():
    """The order that the Gumbel draw returns is the one whose probability is computed."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    order = gumbel_top_k(p.log().expand(40_000, -1), 2, Draws(0))
    for first, second in permutations(range(4), 2):
        found = ((order[:, 0] == first) & (order[:, 1] == second)).float().mean().item()
        assert found == pytest.approx(by_hand(p.tolist(), (first, second)), abs=0.01)
