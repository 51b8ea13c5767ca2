"""Sampler and autoencoder in one backward pass: apart, or joined at the patch embedding."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.adamae import sampling_loss
from tatscli.masking.rl import ppo
from tatscli.masking.rl.learned import LearnedMasker
from tatscli.recipe.schema import Recipe
from tatscli.system.system import Errors, System, build_system
from tests.masking.kinds import clip_of, schedule_of, seeded
from tests.masking.rl.toy import GRID, copied, learner_of, make, noise, same, teach

BF16 = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
HEADLESS = {"baseline": "none", "entropy": 0.0}
"""Leaves nothing but the policy loss of `tats`."""


def system_of(kind: str, **mask: Any) -> tuple[System, LearnedMasker]:
    """Build a system of 32 tokens, in training, whose sampler is not uniform any more."""
    torch.manual_seed(0)
    recipe = Recipe.model_validate(
        {
            "data": {"store": "", "frames": 4, "size": 16, "sampling": {"stride": 1}},
            "model": {"width": 12, "depth": 1, "heads": 2, "patch": 4},
            "mask": {"kind": kind, "ratio": 0.75, "width": 8, "heads": 2, "warmup": 0.0} | mask,
            "head": {"kind": "decoder", "depth": 1},
        }
    )
    system = build_system(recipe).train()
    masker = system.masker
    assert isinstance(masker, LearnedMasker)
    for parameter in masker.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    masker.learners(schedule_of(1000))
    learner_of(masker).begin(0)
    return system, masker


def begin(system: System) -> tuple[Clip, Errors]:
    """Mask and predict a batch as training does."""
    video = torch.randint(256, (3, 3, 4, 16, 16), dtype=torch.uint8, generator=seeded(1))
    clip = system.clip(video)
    return clip, system.errors(clip, Draws(2))


def gradients(loss: Tensor, module: torch.nn.Module) -> dict[str, Tensor]:
    """Return what a loss gives a module, by parameter; nothing where it does not reach."""
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: one for name, one in zip(named, found, strict=True) if one is not None}


def collected(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [None, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_sampler_and_autoencoder_leave_each_other_bit_identical(
    kind: str, precision: torch.autocast | None
) -> None:
    epochs = {"epochs": 2, "max_kl": 100.0} if kind == "tats" else {}
    system, masker = system_of(kind, detach=True, **epochs)
    model = system.autoencoder
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with precision or nullcontext():
        _, found = begin(system)
        lesson = masker.learn(found.plan, found.error_BM)  # not even detached
    assert lesson.loss is not None
    assert not gradients(lesson.loss, model) and not gradients(found.loss, masker)
    alone, sampler = gradients(found.loss, model), gradients(lesson.loss, masker)
    assert alone and sampler

    before, sampler_before = copied(model.state_dict()), copied(masker.tensors())
    (found.loss + lesson.loss).backward()
    assert same(collected(model), alone)
    assert same(collected(masker), sampler)
    learner_of(masker).update()
    masker.after_step(1, 1000)
    assert same(collected(model), alone) and not collected(masker)
    assert same(copied(model.state_dict()), before)
    sampler_after = copied(masker.tensors())
    assert not same(sampler_after, sampler_before)
    optimizer.step()
    assert same(copied(masker.tensors()), sampler_after)
    assert not same(copied(model.state_dict()), before)


@pytest.mark.parametrize("precision", [None, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_the_patch_embedding_gets_the_gradient_of_both_losses(
    kind: str, precision: torch.autocast | None
) -> None:
    options = {"weight": 0.5} if kind == "adamae" else HEADLESS
    system, masker = system_of(kind, detach=False, **options)
    model = system.autoencoder
    with precision or nullcontext():
        clip, found = begin(system)
        lesson = masker.learn(found.plan, found.error_BM.detach())
    assert lesson.loss is not None
    alone = gradients(found.loss, model)
    (found.loss + lesson.loss).backward()
    both = collected(model)
    learner_of(masker).update()

    # One common loss and one backward pass, as published.
    twin, other = system_of(kind, detach=False, **options)
    error = found.error_BM.detach()
    with precision or nullcontext():
        log_p = other.policy(twin.encoder.embed(clip.cubes())).log_p_BN
    if kind == "tats":  # on-policy, the gradient of a ratio is that of its logarithm
        error = ppo.advantages(error, torch.zeros(len(error)))
    loss = (0.5 if kind == "adamae" else 1.0) * sampling_loss(log_p, found.plan.predict_BM, error)
    sampler = gradients(loss, twin.autoencoder)
    reached = {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
    assert set(sampler) == reached
    for name, gradient in both.items():
        if name not in reached:
            assert torch.equal(gradient, alone[name])
            continue
        assert (gradient - alone[name]).norm() > 0.01
        torch.testing.assert_close(gradient, alone[name] + sampler[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_a_sampler_that_is_not_finite_costs_the_encoder_nothing(kind: str, fault: float) -> None:
    system, masker = system_of(kind, detach=False)
    model = system.autoencoder
    _, found = begin(system)
    error = found.error_BM.detach().clone()
    error[1, 0] = fault
    lesson = masker.learn(found.plan, error)
    assert lesson.loss is not None and not lesson.loss.isfinite()
    alone = gradients(found.loss, model)
    before = copied(masker.policy.state_dict())
    (found.loss + lesson.loss).backward()
    assert same(collected(model), alone)
    assert not all(one.isfinite().all() for one in collected(masker).values())
    learner_of(masker).update()
    assert same(copied(masker.policy.state_dict()), before)


@pytest.mark.parametrize("broken", ["actor.weight", "input.weight"])
def test_nor_does_a_broken_policy(broken: str) -> None:
    system, masker = system_of("tats", detach=False)
    with torch.no_grad():
        masker.policy.get_parameter(broken)[0, 0] = torch.nan
    _, found = begin(system)
    lesson = masker.learn(found.plan, found.error_BM.detach())
    assert lesson.loss is not None
    alone = gradients(found.loss, system.autoencoder)
    (found.loss + lesson.loss).backward()
    assert same(collected(system.autoencoder), alone)


@pytest.mark.parametrize("kind", ["tats", "adamae"])
@pytest.mark.parametrize("detach", [False, True])
def test_embeddings_have_a_graph_only_where_the_sampler_sends_something_back(
    kind: str, detach: bool
) -> None:
    system, masker = system_of(kind, detach=detach)
    assert masker.reaches_encoder == (not detach)
    clip, _ = begin(system)
    assert clip.tokens_BND.requires_grad == (not detach)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("kind", ["tats", "adamae"])
def test_whatever_the_embeddings_carry_the_switch_decides(kind: str, detach: bool) -> None:
    masker = make(kind, detach=detach)
    torch.nn.init.normal_(masker.policy.actor.weight)
    tokens = noise().tokens_BND.requires_grad_()
    teach(masker, 0, clip_of(GRID, tokens=tokens))
    assert (tokens.grad is None) == detach
    assert detach or tokens.grad.abs().max() > 1e-7
