"""The learned mask: sign, the objective, warm-up and rate, precision, what is not finite."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tatscli.masking.rl import ppo
from tatscli.masking.rl.learned import LearnedMasker
from tests.masking.kinds import clip_of, schedule_of, seeded
from tests.masking.rl.toy import (
    GRID,
    TOKENS,
    WIDTH,
    bad_updates,
    batch,
    copied,
    differing,
    learner_of,
    make,
    noise,
    random_errors,
    same,
    share,
    teach,
    train,
)

BF16 = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def learnt(masker: LearnedMasker, steps: int, *, credit: float = 1.0) -> float:
    """Return the marked tokens' share of what is shown after some steps; 0.1 is chance."""
    train(masker, steps, credit=credit)
    return share(masker)


def test_hard_tokens_gain_visibility_and_inverted_credit_would_hide_them() -> None:
    assert learnt(make(), 0) == pytest.approx(0.1, abs=0.02)
    assert learnt(make(), 150) > 0.2
    assert learnt(make(), 150, credit=-1.0) < 0.05


def test_relative_rewards_pass_over_what_is_hard_in_every_clip() -> None:
    """Four positions are hard in all clips, and harder than what is marked."""

    def shown(reward: str) -> tuple[float, float]:
        masker = make(reward=reward, base_lr=2e-3)
        for step in range(300):
            clip, marked = batch(step)
            hard = torch.where(marked, 0.9, 0.3)
            hard[:, :4] = 1.2
            hard = hard * (0.5 + torch.rand(hard.shape, generator=seeded(step)))
            teach(
                masker, step, clip, errors=lambda plan, hard=hard: hard.gather(1, plan.predict_BM)
            )
        ground = marks = 0.0
        for seed in range(1000, 1020):
            clip, marked = batch(seed)
            policy = masker.scores_BN(clip)
            ground += policy[:, :4].mean().item() / 20
            marks += policy[:, 4:][marked[:, 4:]].mean().item() / 20
        return ground, marks

    ground, marks = shown("error")
    assert ground > marks
    ground, marks = shown("relative")
    assert marks > 1.5 * ground


def test_the_network_scores_its_draw_alike_twice() -> None:
    masker = make()
    train(masker, 10)
    tokens = noise(2).tokens_BND
    assert torch.equal(masker.policy(tokens).log_p_BN, masker.policy(tokens).log_p_BN)


def test_one_update_is_the_objective_of_the_method_to_the_last_sign() -> None:
    masker = make(clip_grad=1e9, weight_decay=0.0)
    train(masker, 5)
    clip = noise(3)
    twin = copy.deepcopy(masker)
    error = torch.rand(3, TOKENS)
    taught = teach(masker, 5, clip, errors=lambda plan: error.gather(1, plan.predict_BM))
    error = error.gather(1, taught.plan.predict_BM)

    log_p, value = twin.policy(clip.tokens_BND)
    reward = error.mean(1)
    level = float(twin.reward.first)  # of the steps before
    spread = float(twin.reward.variance) ** 0.5
    advantage = ppo.advantages(error, level + spread * value)
    # At ratio one the surrogate's gradient is that of advantage-weighted log-probabilities.
    policy = -(advantage * log_p.gather(1, taught.plan.predict_BM)).mean()
    critic = (value - (reward - level) / spread).square().mean()
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    (policy + 0.5 * critic - 1.0 * entropy).backward()
    learner_of(twin).begin(5)
    learner_of(twin).optimizer.step()

    for ours, theirs in zip(masker.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_micro_batches_make_one_update_from_the_mean_of_their_gradients(kind: str) -> None:
    masker = make(kind, clip_grad=1e9)
    train(masker, 5)
    twin = copy.deepcopy(masker)
    clips, error = [noise(3, seed) for seed in (1, 2)], torch.rand(2, 3, 30)
    given = iter(error)
    taught = teach(masker, 5, *clips, errors=lambda _: next(given))

    learner, draws = learner_of(twin), Draws(5)
    learner.begin(5)
    parameters = list(twin.policy.parameters())
    gradients = []
    for number, clip in enumerate(clips):
        lesson = twin.learn(twin.plan(clip, draws), error[number])
        assert lesson.loss is not None
        gradients.append(torch.autograd.grad(lesson.loss, parameters))
    for parameter, first, second in zip(parameters, *gradients, strict=True):
        parameter.grad = (first + second) / 2
    torch.testing.assert_close(
        taught.norm, torch.stack([one.grad.norm() for one in parameters]).norm()
    )
    learner.optimizer.step()
    for ours, theirs in zip(masker.policy.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_the_weight_of_the_entropy_moves_with_every_update_not_with_every_micro_batch() -> None:
    one, two = make(entropy_target=0.9), make(entropy_target=0.9)
    start = one.log_entropy.clone()
    clip = noise()
    teach(one, 0, clip)
    teach(two, 0, clip, clip)  # of a policy that is still uniform
    assert one.log_entropy != start
    torch.testing.assert_close(two.log_entropy, one.log_entropy)


def test_metrics_say_what_happened() -> None:
    taught = teach(make(), 0, noise())
    assert set(taught.lessons[0].metrics) == {
        "reward",
        "policy_loss",
        "value_loss",
        "entropy",
        "kl",
        "clip_fraction",
        "explained_variance",
    }
    assert set(taught.after.metrics) == {"restored"}
    assert all(isinstance(one, Tensor) for one in taught.lessons[0].metrics.values())
    assert taught.metrics["entropy"] == pytest.approx(1, abs=1e-6)
    assert taught.metrics["sampler_grad_norm"] > 0
    assert taught.metrics["restored"] == 0
    error = torch.rand(4, 30)
    taught = teach(make(), 0, noise(), errors=lambda _: error)
    assert taught.metrics["reward"] == pytest.approx(error.mean().item())


def test_warm_up_draws_uniformly_while_both_heads_learn() -> None:
    masker = make(warmup=0.5, base_lr=1e-2, steps=10)
    with torch.no_grad():  # a policy that would always show the same tokens
        masker.policy.position.copy_(torch.randn(TOKENS, 16) * 10)
        masker.policy.actor.weight.normal_()
    clip, learner = noise(2000), learner_of(masker)

    def shown() -> Tensor:
        return 1 - masker.plan(clip, Draws(0)).hidden_BN(TOKENS).float().mean(0)

    learner.begin(4)
    uniform = torch.full((TOKENS,), 0.25)
    torch.testing.assert_close(shown(), uniform, atol=0.04, rtol=0)
    few = clip_of(GRID, tokens=clip.tokens_BND[:8])
    teach(masker, 3, few)  # of the first step the critic learns nothing but the level
    before = copied(masker.state_dict())
    scores = masker.scores_BN(few)
    taught = teach(masker, 4, few)
    after = masker.state_dict()
    for name in ("policy.actor.weight", "policy.critic.2.weight"):
        assert not torch.equal(before[name], after[name])
    # Ratios are against the uniform draw.
    expected = ppo.kl_divergence(torch.full((8, TOKENS), 1 / TOKENS).log(), scores.log())
    assert taught.metrics["kl"] == pytest.approx(expected.mean().item(), rel=1e-4)

    learner.begin(5)
    assert shown().std() > 0.2
    learner.begin(4)
    masker.eval()
    assert shown().std() > 0.2  # looking at a run in its warm-up shows the policy


def test_the_warm_up_of_adamae_is_that_of_the_rate_alone() -> None:
    masker = make("adamae", warmup=0.5, steps=10)
    with torch.no_grad():
        masker.policy.position.copy_(torch.randn(TOKENS, 16) * 10)
        masker.policy.actor.weight.normal_()
    learner_of(masker).begin(0)
    hidden = masker.plan(noise(2000), Draws(0)).hidden_BN(TOKENS)
    assert hidden.float().mean(0).std() > 0.2


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_the_learning_rate_rises_in_the_warm_up_and_follows_a_cosine_to_zero(kind: str) -> None:
    masker = make(kind, warmup=0.2, steps=None)
    learner = masker.learners(schedule_of(100, total_batch=512))["sampler"]  # 1e-3 per 256 videos
    assert learner is masker.learner
    rates = []
    for step in range(100):
        returned = learner.begin(step)
        rates.append(returned)
        assert [group["lr"] for group in learner.optimizer.param_groups] == [returned] * 2
        assert masker.warming_up == (step < 20)
    assert rates[:3] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert rates[19] == rates[20] == pytest.approx(2e-3)
    assert rates[60] == pytest.approx(1e-3)
    assert rates[99] == pytest.approx(2e-3 * (0.5 + 0.5 * math.cos(math.pi * 79 / 80)))


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_its_learner_is_as_the_recipe_says(kind: str) -> None:
    learner = learner_of(make(kind, clip_grad=0.3, weight_decay=0.02))
    assert (learner.clip_grad, learner.averages) == (0.3, True)
    assert [group["weight_decay"] for group in learner.optimizer.param_groups] == [0.02, 0.0]
    assert learner.optimizer.defaults["betas"] == (0.9, 0.95)
    assert learner.optimizer.defaults["fused"]


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_schedule_of_nothing_but_one_phase_works(warmup: float) -> None:
    masker = make(warmup=warmup, steps=10)
    for step in (0, 9, 10):
        assert 0 <= learner_of(masker).begin(step) <= 1e-3
    learner_of(masker).begin(0)
    assert masker.warming_up == bool(warmup)


def test_outer_autocast_does_not_reach_probabilities_or_ratios() -> None:
    results = []
    for enabled in (False, True):
        masker = make(epochs=3, max_kl=100.0)
        outer = torch.autocast("cpu", torch.bfloat16, enabled=enabled)
        error = torch.rand(4, 30, generator=seeded())
        # Planned outside, learnt inside.
        taught = teach(masker, 0, noise(), errors=lambda _, error=error: error, learning=outer)
        assert taught.metrics["updates"] == 2
        results.append(masker.state_dict())
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("planned", "learnt"), [(BF16, None), (None, BF16)])
def test_later_passes_round_as_the_draw_did(
    planned: torch.autocast | None, learnt: torch.autocast | None
) -> None:
    masker = make(rollouts=2, base_lr=1e-30)  # too small to move a weight
    torch.nn.init.normal_(masker.policy.actor.weight)
    for step in range(2):
        taught = teach(masker, step, noise(), planning=planned, learning=learnt)
    assert taught.metrics["updates"] == 2
    assert taught.metrics["kl"] == taught.metrics["clip_fraction"] == 0


@pytest.mark.slow
def test_half_precision_survives_a_thousand_steps_at_95_percent() -> None:
    masker = make(ratio=0.95, base_lr=3e-3, entropy=0.05)
    for step in range(1000):
        tokens = torch.randn(2, TOKENS, WIDTH, generator=seeded(step)).bfloat16()
        taught = teach(
            masker,
            step,
            clip_of(GRID, tokens=tokens),
            errors=lambda plan, first=tokens[..., 0]: first.gather(1, plan.predict_BM).square(),
            planning=BF16,
            learning=BF16,
        )
        assert taught.plan.visible_BK.shape == (2, 2)
    assert not any(bad_updates(masker))
    assert taught.metrics["entropy"] < 0.98  # it did learn
    assert all(p.isfinite().all() for p in masker.parameters())


@pytest.mark.parametrize("broken", ["error", "tokens", "inf"])
@pytest.mark.parametrize(
    "switch", [{"epochs": 2}, {"epochs": 2, "entropy_target": 0.9}, {"rollouts": 1}], ids=str
)
def test_what_is_not_finite_is_left_out_reported_and_forgotten(
    broken: str, switch: dict[str, Any]
) -> None:
    masker = make(**switch)
    train(masker, 3)
    assert not any(bad_updates(masker))
    before = copied(masker.tensors())
    if broken == "tokens":  # errors that are finite still count towards the level of rewards
        before = {name: value for name, value in before.items() if "reward" not in name}
    tokens = noise(3).tokens_BND
    if broken == "tokens":
        tokens[1, 2, 3] = math.nan
    error = torch.rand(3, 30)
    if broken != "tokens":
        error[0, 0] = math.nan if broken == "error" else math.inf
    taught = teach(masker, 3, clip_of(GRID, tokens=tokens), errors=lambda _: error)
    assert not taught.plan.faulty_B(TOKENS).any()  # drawn uniformly meanwhile
    assert bad_updates(masker) == [True] * masker.config.epochs
    assert taught.metrics.get("updates", 0) == taught.metrics["restored"] == 0
    after = masker.tensors()
    assert differing({name: after[name] for name in before}, before) == []
    taught = teach(masker, 4, noise(3))
    assert bad_updates(masker) == [False] * masker.config.epochs
    assert taught.metrics.get("updates", 1) == 1
    assert not same({name: masker.tensors()[name] for name in before}, before)


def test_a_plan_that_predicts_fewer_hidden_tokens_credits_those() -> None:
    masker = make()
    before = copied(masker.policy.state_dict())

    def fewer(plan: MaskPlan) -> MaskPlan:
        return MaskPlan(plan.visible_BK, plan.predict_BM[:, ::3].contiguous())

    assert teach(masker, 0, noise(2), change=fewer).plan.predict_BM.shape == (2, 10)
    assert not same(masker.policy.state_dict(), before)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_learning_needs_a_plan_made_in_training_and_its_errors(kind: str) -> None:
    masker = make(kind)
    plan = masker.plan(noise(2), Draws(0))
    with pytest.raises(ValueError, match=r"\(2, 3\) do not belong"):
        masker.learn(plan, torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="needs a plan"):
        masker.learn(plan, random_errors(plan))
    plan = masker.eval().plan(noise(2), Draws(0))
    with pytest.raises(RuntimeError, match="needs a plan"):
        masker.learn(plan, random_errors(plan))


def test_evaluation_keeps_no_graph_and_scores_are_probabilities() -> None:
    masker = make(detach=False)
    train(masker, 20)
    masker.eval()
    seen: list[bool] = []
    masker.policy.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.log_p_BN.requires_grad)
    )
    clip = clip_of(GRID, tokens=noise(2).tokens_BND.requires_grad_())
    masker.plan(clip, Draws(0))
    scores = masker.scores_BN(clip)
    assert seen == [False, False]
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    assert scores.std() > 1e-4
    assert masker.train().scores_BN(clip).requires_grad is False


def test_plans_made_without_gradients_can_still_be_learnt_from() -> None:
    masker = make()
    before = copied(masker.policy.state_dict())
    teach(masker, 0, noise(2), planning=torch.no_grad())
    assert not same(masker.policy.state_dict(), before)
