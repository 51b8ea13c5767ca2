"""Every switch of the learned masks does what it says, and hard tokens still gain visibility."""

import math

import pytest
import torch
from pydantic import ValidationError

from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo
from tatscli.masking.rl.credit import credited_log_prob
from tatscli.recipe import schema
from tests.masking.rl.toy import (
    GRID,
    TOKENS,
    bad_updates,
    batch,
    learner_of,
    make,
    noise,
    share,
    train,
)

LEARNS = [
    {"trunk": "mha"},
    {"critic": "separate"},
    {"objective": "logprob"},
    {"log_prob": "exact"},
    {"baseline": "clip_mean"},
    {"baseline": "none"},
    {"reward": "relative"},
    {"floor": 0.2},
    {"quota": True},
    {"quota": True, "log_prob": "exact"},
    {"rollouts": 3},
    {"rollouts": 2, "epochs": 2, "max_kl": 1.0},
    {"entropy_target": 0.9},
    {"detach": False},
    {"clip_grad": None},
    pytest.param({"credit": "visible", "base_lr": 3e-3}, marks=pytest.mark.slow),
    pytest.param(  # each alone is above, what they come to together is compared below
        {"credit": "visible", "log_prob": "exact", "base_lr": 3e-3}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("switch", LEARNS, ids=str)
def test_hard_tokens_gain_visibility_whatever_the_switches(switch):
    masker = make(**switch)
    steps = 600 if switch.get("credit") == "visible" else 150
    restored = train(masker, steps)["restored"]
    assert share(masker) > 0.13
    assert not any(bad_updates(masker))
    assert restored == 0


def test_a_separate_critic_shares_no_trunk():
    tokens = batch(0)[0].tokens_BND
    masker = make(critic="separate")
    torch.nn.init.normal_(masker.policy.critic[2].weight)
    value = masker.policy(tokens).value_B
    assert value.shape == (len(tokens),)
    value.sum().backward()
    assert all(p.grad is None for p in masker.policy.trunk.parameters())
    assert any(p.grad is not None for p in masker.policy.critic_trunk.parameters())
    shared = make()
    torch.nn.init.normal_(shared.policy.critic[2].weight)
    shared.policy(tokens).value_B.sum().backward()
    assert any(p.grad is not None for p in shared.policy.trunk.parameters())


@pytest.mark.parametrize("baseline", ["clip_mean", "none"])
def test_without_a_critic_there_is_none(baseline):
    masker = make(baseline=baseline)
    assert masker.policy.critic is None
    assert "value_loss" not in train(masker, 1)


def test_the_floor_is_the_least_probability():
    masker = make(floor=0.2)
    with torch.no_grad():
        masker.policy.actor.weight.normal_(std=20)
    p = masker.scores_BN(batch(0)[0])
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
    assert p.min() >= 0.2 / TOKENS - 1e-7
    assert p.min() == pytest.approx(0.2 / TOKENS, rel=1e-3)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_a_quota_shows_equally_many_tokens_of_every_slice(ratio):
    masker = make(quota=True, ratio=ratio)
    with torch.no_grad():
        masker.policy.actor.weight.normal_(std=20)
    plan = masker.plan(batch(0)[0], Draws(0))
    sites = TOKENS // GRID[0]
    counts = torch.stack([(plan.visible_BK // sites == t).sum(1) for t in range(GRID[0])], 1)
    assert counts.unique().tolist() == [int(sites * (1 - ratio) + 1e-9)]
    p = masker.scores_BN(batch(0)[0]).unflatten(1, (GRID[0], sites))
    torch.testing.assert_close(p.sum(2), torch.full(p.shape[:2], 1 / GRID[0]))
    assert masker.visible == plan.visible_BK.shape[1]


@pytest.mark.parametrize("objective", ["ppo", "logprob"])
def test_the_log_probability_objective_has_no_ratio_and_clips_nothing(objective):
    """In the warm-up draws are uniform, so that ratios are far from one at once."""
    masker = make(objective=objective, baseline="none", entropy=0.0, warmup=1.0, steps=10)
    learner_of(masker).begin(0)
    torch.nn.init.normal_(masker.policy.actor.weight)
    clip, error = noise(), torch.rand(4, 30)
    plan = masker.plan(clip, Draws(0))
    lesson = masker.learn(plan, error)
    assert lesson.metrics["clip_fraction"] > 0.3
    log_p = masker.policy(clip.tokens_BND).log_p_BN.gather(1, plan.predict_BM)
    advantage = ppo.advantages(error, torch.zeros(4))
    expected = -(advantage * log_p).mean()
    if objective == "ppo":
        expected = ppo.clipped_surrogate((log_p + math.log(TOKENS)).exp(), advantage, 0.2)
    torch.testing.assert_close(lesson.loss, expected)
    weight = masker.policy.actor.weight
    (got,), (wanted,) = (torch.autograd.grad(loss, weight) for loss in (lesson.loss, expected))
    torch.testing.assert_close(got, wanted)


def test_credit_goes_where_the_switch_says():
    log_p = torch.randn(2, 6).log_softmax(1)
    order = torch.tensor([[4, 1], [0, 3]])
    plan = MaskPlan.from_visible(order, 6)
    hidden = {"credit": "masked", "exact": False}
    assert torch.equal(
        credited_log_prob(log_p, order, plan.predict_BM, **hidden), log_p.gather(1, plan.predict_BM)
    )
    shown = {"credit": "visible", "exact": False}
    assert torch.equal(
        credited_log_prob(log_p, order, plan.predict_BM, **shown), log_p.gather(1, order)
    )
    p = log_p.exp()
    exact = credited_log_prob(log_p, order, plan.predict_BM, credit="visible", exact=True)
    expected = torch.tensor(
        [[p[0, 4], p[0, 1] / (1 - p[0, 4])], [p[1, 0], p[1, 3] / (1 - p[1, 0])]]
    )
    torch.testing.assert_close(exact.exp(), expected)
    following = credited_log_prob(log_p, order, plan.predict_BM, credit="masked", exact=True)
    left = p.gather(1, plan.predict_BM)
    torch.testing.assert_close(following.exp(), left / left.sum(1, keepdim=True))


def test_groups_are_drawn_from_apart():
    log_p = (torch.randn(1, 2, 3).log_softmax(2) - math.log(2)).flatten(1)
    order = torch.tensor([[2, 0, 4, 5]])  # two of each group
    found = credited_log_prob(
        log_p, order, torch.tensor([[1, 3]]), credit="visible", exact=True, groups=2
    )
    p = log_p.exp().unflatten(1, (2, 3))[0] * 2
    expected = [p[0, 2], p[0, 0] / (1 - p[0, 2]), p[1, 1], p[1, 2] / (1 - p[1, 1])]
    torch.testing.assert_close(found[0].exp(), torch.stack(expected))


@pytest.mark.slow
def test_the_entropy_stays_where_it_is_wished():
    for target in (0.85, 0.95):
        masker = make(entropy_target=target, entropy=0.1)  # alone it would lead to collapse
        train(masker, 400)
        tail = [train(masker, 1, start=400 + step)["entropy"] for step in range(60)]
        assert sum(tail) / len(tail) == pytest.approx(target, abs=0.04)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_temperature_sharpens_only_while_looking(kind):
    masker = make(kind)
    with torch.no_grad():
        masker.policy.actor.weight.normal_()
    clip = batch(0)[0]
    plain = masker.scores_BN(clip)
    masker.temperature = 0.25
    sharp = masker.scores_BN(clip)
    expected = (plain.log() / 0.25).softmax(1)
    torch.testing.assert_close(sharp, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 30}, "not a multiple"),
        ({"credit": "visible", "baseline": "clip_mean"}, "cancels"),
        ({"rollouts": 2, "detach": False}, "detach: true"),
        ({"entropy_target": 1.0}, "less than 1"),
        ({"floor": 1.0}, "less than 1"),
        ({"trunk": "cnn"}, "trajectory"),
    ],
)
def test_switches_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        schema.TatsMask(kind="tats", **wrong)
