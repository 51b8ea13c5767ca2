"""The running level and spread of rewards."""

from __future__ import annotations

import math

import pytest
import torch

from tatscli.masking.learning.reward import RunningReward
from tests.masking.learning.toy import copied, same


def test_the_first_batch_sets_level_and_spread_and_later_ones_follow_slowly() -> None:
    running = RunningReward()
    level = second = 0.0
    for number in range(1, 60):
        reward = 2 + 0.1 * torch.randn(16, generator=torch.Generator().manual_seed(number))
        running.update(reward.mean(), reward.square().mean())
        rate = max(0.05, 1 / number)
        level += rate * (reward.double().mean().item() - level)
        second += rate * (reward.double().square().mean().item() - second)
        if number == 1:
            torch.testing.assert_close(running.first, reward.mean())
    torch.testing.assert_close(running.first.item(), level, rtol=1e-5, atol=0)
    torch.testing.assert_close(running.spread.item(), (second - level**2) ** 0.5, rtol=1e-2, atol=0)
    assert 0.08 < running.spread < 0.12


def test_standardising_and_restoring_undo_each_other_even_where_nothing_varies() -> None:
    running = RunningReward()
    alike = torch.full((4,), 0.7)
    running.update(alike.mean(), alike.square().mean())
    assert torch.isfinite(running.standardise(alike)).all()
    reward = torch.tensor([0.6, 0.7, 0.9])
    back = running.restore(running.standardise(reward), torch.zeros(3))
    torch.testing.assert_close(back, reward)


@pytest.mark.parametrize("known", [0, 1, 30])
@pytest.mark.parametrize(
    ("first", "second"),
    [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf), (-math.inf, 1.0), (1e30, math.inf)],
)
def test_what_is_not_finite_is_no_batch(known: int, first: float, second: float) -> None:
    running = RunningReward()
    for number in range(known):
        running.update(torch.tensor(2.0 + number), torch.tensor(5.0 + number))
    before = copied(running.state_dict())
    running.update(torch.tensor(first), torch.tensor(second))
    assert same(running.state_dict(), before)
    twin = RunningReward()
    twin.load_state_dict(before)
    for one in (running, twin):
        one.update(torch.tensor(3.0), torch.tensor(10.0))
    assert same(running.state_dict(), twin.state_dict())
    assert running.batches == known + 1
