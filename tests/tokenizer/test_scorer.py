"""Scores of codes, and which are kept: against loops, samples and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tatscli.tokenizer.scorer import Scorer, highest, highest_by_sigmoid, perturbed, standardized


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_scores_are_distances_to_the_slice_before(stride: int, tubelet: int) -> None:
    torch.manual_seed(0)
    scorer = Scorer(6, stride=stride, tubelet=tubelet)
    frames = torch.rand(2, 3, 3 * tubelet, 2 * stride, 3 * stride)
    scores, last = scorer(frames)
    assert scores.shape == (2, 3, 2, 3)
    vectors = scorer.second(torch.nn.functional.silu(scorer.first(2 * frames - 1)))
    for t in (1, 2):
        for y in range(2):
            for x in range(3):
                far = (vectors[:, :, t, y, x] - vectors[:, :, t - 1, y, x]).square().sum(1).sqrt()
                torch.testing.assert_close(scores[:, t, y, x], far)
    assert torch.equal(scores[:, 0], scores[:, 1])
    assert torch.equal(last, vectors[:, :, -1])


def test_windows_do_not_show_and_what_is_still_scores_nothing() -> None:
    torch.manual_seed(0)
    scorer = Scorer(8, stride=8, tubelet=2)
    frames = torch.rand(1, 3, 12, 16, 16)
    whole, _ = scorer(frames)
    first, before = scorer(frames[:, :, :8])
    second, _ = scorer(frames[:, :, 8:], before)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    still = frames[:, :, :1].expand(-1, -1, 12, -1, -1)
    assert scorer(still)[0].abs().max() == 0
    one, _ = scorer(frames[:, :, :2])  # a single slice has nothing to be compared with
    assert one.abs().max() == 0
    moving = still.clone()
    moving[:, :, 6:, :8, :8] = 0
    scores, _ = scorer(moving)
    assert scores[0, 3, 0, 0] > 0
    assert scores[0, 4:].abs().max() == 0


def test_equal_scores_have_a_finite_gradient() -> None:
    scorer = Scorer(4, stride=4, tubelet=2)
    still = torch.rand(1, 3, 1, 8, 8).expand(-1, -1, 8, -1, -1)
    scorer(still)[0].sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in scorer.parameters())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=12),
    st.data(),
)
def test_exactly_so_many_of_the_highest_are_kept(values: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values) - 1))
    scores = torch.tensor([values])
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    kept = highest(scores, keep)
    assert kept[0].nonzero().flatten().tolist() == sorted(wanted)
    soft = highest_by_sigmoid(scores.clone().requires_grad_(), keep, 0.3)
    torch.testing.assert_close(soft.detach(), kept)
    torch.manual_seed(0)
    often = perturbed(scores, keep, 0.3, 16)
    torch.testing.assert_close(often.sum(), torch.tensor(float(keep)))


def test_the_straight_through_gradient_is_that_of_the_sigmoid() -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 9, dtype=torch.float64)
    (highest_by_sigmoid(scores, 4, 0.25) * upstream).sum().backward()

    def soft(given: torch.Tensor) -> torch.Tensor:
        scaled = (given - given.mean(1, keepdim=True)) / given.std(1, correction=0, keepdim=True)
        ranked = standardized(scores).detach().sort(dim=1, descending=True).values
        tau = (ranked[:, 3] + ranked[:, 4])[:, None] / 2
        return (upstream / (1 + (-(scaled - tau) / 0.25).exp())).sum()

    for place in ((0, 0), (1, 5)):
        step = torch.zeros_like(scores)
        step[place] = 1e-6
        slope = (soft(scores.detach() + step) - soft(scores.detach() - step)) / 2e-6
        assert scores.grad is not None
        assert scores.grad[place].item() == pytest.approx(slope.item(), abs=1e-6)


def test_the_perturbed_choice_and_its_gradient_are_those_of_the_expectation() -> None:
    """Two scores, one of which is kept: its share is known, Phi(difference / (sqrt 2 sigma))."""
    torch.manual_seed(0)
    # Standardised, two scores are 1 and -1, whatever they are.
    scores = torch.tensor([[3.0, 1.0]])
    share = perturbed(scores, 1, 2.0, 40_000)[0, 0].item()
    wanted = 0.5 * (1 + math.erf(2 / (2**0.5 * 2.0) / 2**0.5))
    assert share == pytest.approx(wanted, abs=0.01)
    three = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    upstream = torch.tensor([[1.0, 0.0, 0.0]])
    torch.manual_seed(1)
    (perturbed(three, 1, 1.0, 200_000) * upstream).sum().backward()
    moved = []
    for sign in (1, -1):
        torch.manual_seed(2)
        given = torch.tensor([[2.0, 1.0 + 0.1 * sign, 0.0]])
        moved.append(perturbed(given, 1, 1.0, 200_000)[0, 0].item())
    assert three.grad is not None
    assert three.grad[0, 1].item() == pytest.approx((moved[0] - moved[1]) / 0.2, abs=0.03)
