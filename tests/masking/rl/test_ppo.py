"""The objective, term by term and as a whole on the method's toy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tatscli.draws import Draws
from tatscli.masking.draw import gumbel_top_k
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo


def test_advantages_are_centred_on_the_baseline_and_scaled_by_the_clips_spread() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 8.0]], requires_grad=True)
    baseline = torch.tensor([2.0, 5.0], requires_grad=True)
    advantage = ppo.advantages(rewards, baseline)
    spread = math.sqrt(2 / 3)
    assert advantage[0].tolist() == pytest.approx([-1 / spread, 0, 1 / spread], rel=1e-5)
    assert advantage[1].tolist() == pytest.approx([0, 0, 3 / math.sqrt(2)], rel=1e-5)
    assert not advantage.requires_grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # already shown more: no further push
        (0.5, 2.0, -1.0, -2.0),  # wrong side: pulled back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 2.0),
    ],
)
def test_the_surrogate_clips_on_the_favoured_side_only(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    r = torch.tensor([[ratio]], requires_grad=True)
    value = ppo.clipped_surrogate(r, torch.tensor([[advantage]]), 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss)
    assert r.grad.item() == pytest.approx(gradient)


def test_entropy_and_divergence_by_hand() -> None:
    uniform, skewed = torch.full((1, 4), 0.25).log(), torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    assert ppo.entropy(uniform).item() == pytest.approx(math.log(4))
    expected = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1))
    assert ppo.entropy(skewed).item() == pytest.approx(expected)
    divergence = 0.25 * (math.log(0.25 / 0.7) + 3 * math.log(0.25 / 0.1))
    assert ppo.kl_divergence(uniform, skewed).item() == pytest.approx(divergence)
    assert ppo.kl_divergence(skewed, skewed).item() == 0


def test_a_certain_policy_has_no_entropy_and_a_finite_gradient() -> None:
    logits = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    entropy = ppo.entropy(logits.log_softmax(-1)).sum()
    entropy.backward()
    assert entropy.item() == 0
    assert logits.grad.isfinite().all()


def test_clip_fraction_counts_both_sides() -> None:
    ratios = torch.tensor([[1.0, 1.19, 1.3, 0.7]])
    assert ppo.clip_fraction(ratios, 0.2).item() == 0.5


def test_explained_variance() -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0])
    assert ppo.explained_variance(rewards, rewards).item() == 1
    assert ppo.explained_variance(torch.full((3,), 2.0), rewards).item() == 0
    assert ppo.explained_variance(-rewards, rewards).item() == pytest.approx(-3)
    assert ppo.explained_variance(torch.tensor([1.0]), torch.tensor([5.0])).item() == 0


def toy(entropy_weight: float, *, credit: float = 1.0) -> tuple[float, float]:
    """Learn 1,568 bare logits where a tenth of the tokens is three times as hard (method, 5.1).

    Returns:
        The hard tokens' share of the visible ones (0.1 is chance) and the normalised entropy.
    """
    N, B, visible = 1568, 4, 156
    generator, draws = torch.Generator().manual_seed(0), Draws(0)
    hard = torch.zeros(N, dtype=torch.bool)
    hard[torch.randperm(N, generator=generator)[:157]] = True
    logits, value = torch.zeros(N, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.05)

    def draw(clips: int) -> Tensor:
        log_p = logits.detach().log_softmax(0).expand(clips, N)
        return gumbel_top_k(log_p, visible, draws)

    for _ in range(300):
        plan = MaskPlan.from_visible(draw(B), N)
        noise = (0.2 * torch.randn(B, N, generator=generator)).exp()
        reward = (torch.where(hard, 1.0, 0.3) * noise).gather(1, plan.predict_BM)
        log_p = logits.log_softmax(0).expand(B, N)
        ratio = (log_p - log_p.detach()).gather(1, plan.predict_BM).exp()
        advantage = credit * ppo.advantages(reward, value.detach().expand(B))
        loss = ppo.clipped_surrogate(ratio, advantage, 0.2)
        loss = loss + 0.5 * (value - reward.mean(1)).square().mean()
        loss = loss - entropy_weight * ppo.entropy(log_p).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    shown = hard[draw(64)].float().mean().item()
    return shown, ppo.entropy(logits.log_softmax(0)[None]).item() / math.log(N)


@pytest.mark.parametrize(
    ("entropy_weight", "share", "entropy"), [(2.0, 0.19, 0.99), (1.0, 0.26, 0.98)]
)
def test_hard_tokens_gain_visibility_as_much_as_the_method_note_computes(
    entropy_weight: float, share: float, entropy: float
) -> None:
    measured = toy(entropy_weight)
    assert measured == (pytest.approx(share, abs=0.03), pytest.approx(entropy, abs=0.015))


def test_inverted_credit_would_hide_them() -> None:
    share, _ = toy(1.0, credit=-1.0)
    assert share < 0.03
