"""The learned mask: sign, isolation, PPO bookkeeping, warm-up, precision, guard rails, resuming."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tatscli.masking import TatsMasker, build_masker
from tatscli.masking.learning import ppo
from tatscli.masking.plan import MaskPlan
from tatscli.nn.autoencoder import MaskedAutoencoder
from tatscli.nn.heads import DecoderHead
from tatscli.nn.vit import Encoder
from tatscli.recipe import schema

GRID, TOKENS, WIDTH = (2, 4, 5), 40, 6


def make(*, lr_scale: float = 1.0, **changes: Any) -> TatsMasker:
    torch.manual_seed(0)
    settings = {"kind": "tats", "ratio": 0.75, "width": 16, "heads": 4, "base_lr": 1e-3}
    config = schema.TatsMask(**(settings | changes))
    masker = build_masker(config, grid=GRID, width=WIDTH, lr_scale=lr_scale)
    assert isinstance(masker, TatsMasker)
    return masker.train()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def train(masker: TatsMasker, steps: int, *, credit: float = 1.0, start: int = 0) -> float:
    """Show clips whose first feature marks a tenth of the tokens, which are three times as hard.

    Returns:
        The marked tokens' share of the visible ones in fresh draws; 0.1 is chance.
    """

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        generator = seeded(seed)
        marked = torch.rand(8, TOKENS, generator=generator).argsort(1) < TOKENS // 10
        tokens = torch.randn(8, TOKENS, WIDTH, generator=generator)
        tokens[..., 0] = 2.0 * marked
        return tokens, marked

    for step in range(start, start + steps):
        tokens, marked = batch(step)
        plan = masker.plan(tokens, generator=seeded(step))
        error = torch.where(marked, 1.0, 0.3).gather(1, plan.predict_BM)
        masker.learn(plan, credit * error)
    masker.eval()
    shown = []
    for seed in range(1000, 1020):
        tokens, marked = batch(seed)
        visible = masker.plan(tokens, generator=seeded(seed)).visible_BK
        shown.append(marked.gather(1, visible).float().mean())
    masker.train()
    return torch.stack(shown).mean().item()


def test_hard_tokens_gain_visibility_and_inverted_credit_would_hide_them() -> None:
    assert train(make(), 0) == pytest.approx(0.1, abs=0.02)
    assert train(make(), 150) > 0.2
    assert train(make(), 150, credit=-1.0) < 0.05


def test_several_updates_a_batch_learn_faster_in_the_same_direction() -> None:
    assert train(make(epochs=4, max_kl=1.0), 40) > train(make(), 40) + 0.02


def test_sampler_and_autoencoder_leave_each_other_bit_identical() -> None:
    torch.manual_seed(0)
    encoder = Encoder(width=WIDTH, depth=1, heads=2, grid=GRID, tubelet=1, patch=2)
    head = DecoderHead(schema.DecoderHead(depth=1, width=4), encoder=encoder, widths=[12])
    model = MaskedAutoencoder(encoder, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    masker = make(epochs=2)
    cubes = torch.randn(3, TOKENS, 12)

    tokens = encoder.embed(cubes)
    plan = masker.plan(tokens)
    picked = plan.predict_BM[..., None].expand(-1, -1, 12)
    (prediction,) = model(cubes, plan.visible_BK, plan.predict_BM)
    error = (prediction - cubes.gather(1, picked)).square().mean(-1)

    before = state(model)
    sampler_before = state(masker)
    error.mean().backward(retain_graph=True)
    assert all(p.grad is None for p in masker.parameters())
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    masker.learn(plan, error)
    assert same(state(model), before)
    assert same(gradients, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    sampler_after = state(masker)
    assert not same(sampler_after, sampler_before)
    optimizer.step()
    assert same(state(masker), sampler_after)
    assert not same(state(model), before)


def test_the_rollouts_graph_serves_the_first_update() -> None:
    for epochs in (1, 3):
        masker = make(epochs=epochs, max_kl=100.0)
        calls: list[int] = []
        masker.policy.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        plan = masker.plan(torch.randn(2, TOKENS, WIDTH))
        metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
        assert len(calls) == epochs
        assert metrics["updates"] == epochs


def test_ratios_are_one_at_the_first_update_and_move_after_it() -> None:
    masker = make(epochs=1)
    train(masker, 10)
    plan = masker.plan(torch.randn(2, TOKENS, WIDTH))
    first = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert first["kl"] == first["clip_fraction"] == 0
    masker = make(epochs=2, base_lr=0.05, max_kl=100.0)
    plan = masker.plan(torch.randn(2, TOKENS, WIDTH))
    assert masker.learn(plan, torch.rand(plan.predict_BM.shape))["kl"] > 0


def test_the_network_scores_its_draw_alike_twice() -> None:
    masker = make()
    train(masker, 10)
    tokens = torch.randn(2, TOKENS, WIDTH)
    assert torch.equal(masker.policy(tokens).log_p_BN, masker.policy(tokens).log_p_BN)


def test_updates_stop_early_once_the_policy_has_moved_too_far() -> None:
    masker = make(epochs=10, base_lr=0.05, max_kl=1e-3)
    plan = masker.plan(torch.randn(4, TOKENS, WIDTH))
    metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert 1 <= metrics["updates"] < 10


def test_one_update_is_the_objective_of_the_method_to_the_last_sign() -> None:
    masker = make(clip_grad=1e9, weight_decay=0.0)
    train(masker, 5)
    tokens = torch.randn(3, TOKENS, WIDTH)
    twin = copy.deepcopy(masker)
    plan = masker.plan(tokens, generator=seeded())
    error = torch.rand(plan.predict_BM.shape)

    log_p, value = twin.policy(tokens)
    reward = error.mean(1)
    old = {name: float(getattr(twin.reward, name)) for name in ("first", "second", "batches")}
    rate = max(0.05, 1 / (old["batches"] + 1))
    level = old["first"] + rate * (reward.mean() - old["first"])
    spread = (old["second"] + rate * (reward.square().mean() - old["second"]) - level**2).sqrt()
    advantage = ppo.advantages(error, level + spread * value)
    # At ratio one the surrogate's gradient is that of advantage-weighted log-probabilities.
    policy = -(advantage * log_p.gather(1, plan.predict_BM)).mean()
    critic = (value - (reward - level) / spread).square().mean()
    entropy = -(log_p.exp() * log_p).sum(1).mean()
    (policy + 0.5 * critic - 1.0 * entropy).backward()
    twin.optimizer.step()

    masker.learn(plan, error)
    for ours, theirs in zip(masker.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_metrics_say_what_happened() -> None:
    masker = make()
    plan = masker.plan(torch.randn(4, TOKENS, WIDTH))
    error = torch.rand(plan.predict_BM.shape)
    metrics = masker.learn(plan, error)
    assert set(metrics) == {
        "reward",
        "policy_loss",
        "value_loss",
        "entropy",
        "kl",
        "clip_fraction",
        "explained_variance",
        "sampler_grad_norm",
        "updates",
        "skipped",
        "restored",
    }
    assert metrics["entropy"] == pytest.approx(1, abs=1e-6)
    assert metrics["reward"] == pytest.approx(error.mean().item())
    assert metrics["sampler_grad_norm"] > 0
    assert (metrics["updates"], metrics["skipped"]) == (1, 0)


def test_warm_up_draws_uniformly_while_both_heads_learn() -> None:
    masker = make(warmup=0.5, base_lr=1e-2)
    with torch.no_grad():  # a policy that would always show the same tokens
        masker.policy.position.copy_(torch.randn(TOKENS, 16) * 10)
        masker.policy.actor.weight.normal_()
    tokens = torch.randn(2000, TOKENS, WIDTH)

    def shown() -> Tensor:
        return 1 - masker.plan(tokens, generator=seeded()).hidden_BN(TOKENS).float().mean(0)

    masker.schedule(4, 10)
    uniform = torch.full((TOKENS,), 0.25)
    torch.testing.assert_close(shown(), uniform, atol=0.04, rtol=0)
    before = state(masker)
    plan = masker.plan(tokens[:8])
    metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    after = state(masker)
    assert not torch.equal(before["policy.actor.weight"], after["policy.actor.weight"])
    assert not torch.equal(before["policy.critic.2.weight"], after["policy.critic.2.weight"])
    # Ratios are against the uniform draw.
    expected = ppo.kl_divergence(
        torch.full((8, TOKENS), 1 / TOKENS).log(),
        torch.stack([p.log() for p in make_scores(masker, before, tokens[:8])]),
    )
    assert metrics["kl"] == pytest.approx(expected.mean().item(), rel=1e-4)

    masker.schedule(5, 10)
    assert shown().std() > 0.2
    masker.schedule(4, 10)
    masker.eval()
    assert shown().std() > 0.2  # looking at a run in its warm-up shows the policy


def make_scores(masker: TatsMasker, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Score tokens with earlier weights."""
    twin = copy.deepcopy(masker)
    twin.load_state_dict(weights)
    return twin.scores_BN(tokens)


def test_the_learning_rate_rises_in_the_warm_up_and_follows_a_cosine_to_zero() -> None:
    masker = make(lr_scale=2.0, warmup=0.2)
    assert masker.optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)
    rates = []
    for step in range(100):
        masker.schedule(step, 100)
        rates.append([group["lr"] for group in masker.optimizer.param_groups])
    assert all(a == b for a, b in rates)
    line = [rate for rate, _ in rates]
    assert line[:3] == pytest.approx([1e-4, 2e-4, 3e-4])
    assert line[19] == line[20] == pytest.approx(2e-3)
    assert line[60] == pytest.approx(1e-3)
    assert line[99] == pytest.approx(2e-3 * (0.5 + 0.5 * math.cos(math.pi * 79 / 80)))


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_schedule_of_nothing_but_one_phase_works(warmup: float) -> None:
    masker = make(warmup=warmup)
    for step in (0, 9, 10):
        masker.schedule(step, 10)
        assert 0 <= masker.optimizer.param_groups[0]["lr"] <= 1e-3
    masker.schedule(0, 10)
    assert masker.warming_up == bool(warmup)


def test_outer_autocast_does_not_reach_probabilities_or_ratios() -> None:
    masker = make(epochs=3, max_kl=100.0)
    tokens = torch.randn(4, TOKENS, WIDTH)
    plan = masker.plan(tokens)
    with torch.autocast("cpu", torch.bfloat16):  # planned outside, learnt inside
        metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
    twin = make(epochs=3, max_kl=100.0)
    error = torch.rand(plan.predict_BM.shape)
    results = []
    for masker_ in (twin, copy.deepcopy(twin)):
        plan = masker_.plan(tokens, generator=seeded())
        with torch.autocast("cpu", torch.bfloat16, enabled=masker_ is not twin):
            masker_.learn(plan, error)
        results.append(state(masker_))
    assert metrics["updates"] == 3
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=1e-6, rtol=0)


def test_half_precision_survives_a_thousand_steps_at_95_percent() -> None:
    masker = make(ratio=0.95, base_lr=3e-3, entropy=0.05)
    for step in range(1000):
        tokens = torch.randn(2, TOKENS, WIDTH, generator=seeded(step)).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            plan = masker.plan(tokens, generator=seeded(step))
            error = tokens[..., 0].gather(1, plan.predict_BM).square()
            metrics = masker.learn(plan, error)
        assert metrics["skipped"] == 0
        assert plan.visible_BK.shape == (2, 2)
    assert metrics["entropy"] < 0.98  # it did learn
    assert all(p.isfinite().all() for p in masker.parameters())


@pytest.mark.parametrize("broken", ["error", "tokens", "inf"])
def test_what_is_not_finite_is_skipped_reported_and_forgotten(broken: str) -> None:
    masker = make(epochs=2)
    train(masker, 3)
    # Errors that are finite may still count towards the running level of rewards.
    part = masker.policy if broken == "tokens" else masker
    before, moments = state(part), {k: v.clone() for k, v in masker.training_state().items()}
    tokens = torch.randn(3, TOKENS, WIDTH)
    if broken == "tokens":
        tokens[1, 2, 3] = math.nan
    plan = masker.plan(tokens)
    error = torch.rand(plan.predict_BM.shape)
    if broken != "tokens":
        error[0, 0] = math.nan if broken == "error" else math.inf
    metrics = masker.learn(plan, error)
    assert (metrics["skipped"], metrics["updates"]) == (1, 0)
    assert all(math.isfinite(value) for value in metrics.values())
    assert same(state(part), before)
    assert same(masker.training_state(), moments)
    plan = masker.plan(torch.randn(3, TOKENS, WIDTH))
    assert masker.learn(plan, torch.rand(plan.predict_BM.shape))["updates"] == 2


def test_a_plan_that_predicts_fewer_hidden_tokens_credits_those() -> None:
    masker = make()
    full = masker.plan(torch.randn(2, TOKENS, WIDTH))
    plan = MaskPlan(full.visible_BK, full.predict_BM[:, ::3].contiguous())
    assert masker.learn(plan, torch.rand(plan.predict_BM.shape))["updates"] == 1


def test_learning_needs_a_plan_made_in_training_and_its_errors() -> None:
    masker = make()
    plan = masker.plan(torch.randn(2, TOKENS, WIDTH))
    with pytest.raises(ValueError, match=r"\(2, 3\) do not belong"):
        masker.learn(plan, torch.rand(2, 3))
    with pytest.raises(RuntimeError, match="needs a plan"):
        masker.learn(plan, torch.rand(plan.predict_BM.shape))
    plan = masker.eval().plan(torch.randn(2, TOKENS, WIDTH))
    with pytest.raises(RuntimeError, match="needs a plan"):
        masker.learn(plan, torch.rand(plan.predict_BM.shape))


def test_evaluation_keeps_no_graph_and_scores_are_probabilities() -> None:
    masker = make()
    train(masker, 20)
    masker.eval()
    seen: list[bool] = []
    masker.policy.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.log_p_BN.requires_grad)
    )
    tokens = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    masker.plan(tokens)
    scores = masker.scores_BN(tokens)
    assert seen == [False, False]
    torch.testing.assert_close(scores.sum(1), torch.ones(2))
    assert scores.std() > 1e-4
    assert masker.train().scores_BN(tokens).requires_grad is False


def test_plans_made_without_gradients_can_still_be_learnt_from() -> None:
    masker = make()
    before = state(masker)
    with torch.no_grad():
        plan = masker.plan(torch.randn(2, TOKENS, WIDTH))
        masker.learn(plan, torch.rand(plan.predict_BM.shape))
    assert not same(state(masker), before)


def test_a_resumed_sampler_is_bit_equal() -> None:
    straight = make()
    train(straight, 6)
    first = make()
    train(first, 3)
    weights, moments = state(first), {k: v.clone() for k, v in first.training_state().items()}
    assert all(isinstance(value, Tensor) for value in moments.values())
    assert "trunk.attn.qkv.weight/exp_avg" in moments
    train(first, 3, start=3)  # goes on and must not disturb what was saved

    resumed = make(lr_scale=1.0)
    train(resumed, 2)  # moments to be replaced
    resumed.load_state_dict(weights)
    resumed.load_training_state(moments)
    train(resumed, 3, start=3)
    assert same(state(resumed), state(straight))
    assert same(resumed.training_state(), straight.training_state())


def test_a_fresh_sampler_has_no_moments_and_takes_none() -> None:
    masker = make()
    assert masker.training_state() == {}
    train(masker, 1)
    masker.load_training_state({})
    assert masker.training_state() == {}


def test_the_trunk_reads_tokens_without_sending_a_gradient_back() -> None:
    masker = make()
    tokens = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    plan = masker.plan(tokens)
    masker.learn(plan, torch.rand(plan.predict_BM.shape, requires_grad=True))
    assert tokens.grad is None
    assert masker.macs() == masker.policy.macs()
