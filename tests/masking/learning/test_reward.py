import torch

from tatscli.masking.learning.reward import RunningReward


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
    same = torch.full((4,), 0.7)
    running.update(same.mean(), same.square().mean())
    assert torch.isfinite(running.standardise(same)).all()
    reward = torch.tensor([0.6, 0.7, 0.9])
    torch.testing.assert_close(running.restore(running.standardise(reward)), reward)
