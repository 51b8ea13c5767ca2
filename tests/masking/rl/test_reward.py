"""The running level and spread of rewards, and the typical error of a position."""

from __future__ import annotations

import math

import pytest
import torch

from tatscli.masking.rl.reward import RunningReward, TypicalError, with_variance
from tests.masking.kinds import seeded
from tests.masking.rl.toy import copied, same


def test_the_first_batch_sets_level_and_spread_and_later_ones_follow_slowly() -> None:
    running = RunningReward()
    level = second = torch.zeros((), dtype=torch.float64)
    for number in range(1, 60):
        reward = 2 + 0.1 * torch.randn(16, generator=torch.Generator().manual_seed(number))
        running.update(reward)
        rate = max(0.05, 1 / number)
        level = level.lerp(reward.double().mean(), rate)
        second = second.lerp(reward.double().square().mean(), rate)
        if number == 1:
            torch.testing.assert_close(running.first, reward.mean())
    torch.testing.assert_close(running.first.double(), level, rtol=1e-6, atol=0)
    spread = (second - level.square()).sqrt()
    torch.testing.assert_close(running.spread.double(), spread, rtol=1e-5, atol=0)
    assert 0.08 < running.spread < 0.12


def test_standardising_and_restoring_undo_each_other_even_where_nothing_varies() -> None:
    running = RunningReward()
    alike = torch.full((4,), 0.7)
    running.update(alike)
    assert torch.isfinite(running.standardise(alike)).all()
    reward = torch.tensor([0.6, 0.7, 0.9])
    back = running.restore(running.standardise(reward), torch.zeros(3))
    torch.testing.assert_close(back, reward)


def test_before_the_first_step_rewards_count_as_the_level() -> None:
    running, reward = RunningReward(), torch.tensor([0.6, 0.9])
    assert torch.equal(running.standardise(reward), torch.zeros(2))
    assert torch.equal(running.restore(torch.ones(2), reward), reward)


@pytest.mark.parametrize("known", [0, 1, 30])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_is_no_step(known: int, bad: float) -> None:
    running = RunningReward()
    for number in range(known):
        running.update(torch.tensor([1.0, 2.0]) + number)
    before = copied(running.state_dict())
    running.update(torch.tensor([bad, 1.0]))
    assert same(running.state_dict(), before)
    twin = RunningReward()
    twin.load_state_dict(before)
    for one in (running, twin):
        one.update(torch.tensor([3.0, 5.0]))
    assert same(running.state_dict(), twin.state_dict())
    assert running.batches == known + 1


def test_the_mean_square_that_older_versions_kept_is_read() -> None:
    old = {"to.reward.first": torch.tensor(2.0), "to.reward.second": torch.tensor(4.25)}
    found = with_variance({**old, "to.policy.x": torch.ones(1)})
    assert found.keys() == {"to.reward.first", "to.reward.variance", "to.policy.x"}
    assert found["to.reward.variance"] == 0.25


def test_errors_are_told_in_units_of_what_is_typical_of_their_position() -> None:
    """Against loops over steps, micro-batches, clips and tokens."""
    tokens, hidden = 6, 2
    typical = TypicalError(tokens)
    level, steps = [0.0] * tokens, [0] * tokens
    for step in range(40):
        heard: list[list[float]] = [[] for _ in range(tokens)]
        for micro in range(2):
            generator = seeded(2 * step + micro)
            predict = torch.rand(3, tokens, generator=generator).argsort(1)[:, :hidden]
            error = torch.rand(3, hidden, generator=generator) + predict
            if step == 7:
                error[0, 0] = torch.nan
            found = typical.relative(error, predict)
            for clip in range(3):
                for place, token in enumerate(predict[clip].tolist()):
                    mine = error[clip, place].item()
                    least = 0.01 * sum(level) / tokens
                    unit = max(level[token], least) if steps[token] else error.mean().item()
                    assert found[clip, place].item() == pytest.approx(
                        mine / unit, rel=1e-4, nan_ok=True
                    )
                    if math.isfinite(mine):
                        heard[token].append(mine)
        typical.update()
        for token, values in enumerate(heard):
            if values:
                steps[token] += 1
                rate = max(0.05, 1 / steps[token])
                level[token] += rate * (sum(values) / len(values) - level[token])
    assert typical.mean_N.tolist() == pytest.approx(level, rel=1e-4)


def test_a_position_without_error_makes_no_reward_endless() -> None:
    typical = TypicalError(3)
    predict = torch.tensor([[0, 1, 2]])
    typical.relative(torch.tensor([[0.0, 1.0, 2.0]]), predict)
    typical.update()
    found = typical.relative(torch.tensor([[0.0, 1.0, 2.0]]), predict)
    assert found.tolist() == [[0.0, 1.0, 1.0]]
    assert typical.relative(torch.tensor([[0.1, 1.0, 2.0]]), predict)[0, 0] == pytest.approx(10)
