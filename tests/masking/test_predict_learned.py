"""Learned masks learn from the tokens that a selection left, and from no others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tatscli.data.clip import Clip
from tatscli.draws import Draws
from tatscli.masking.plan import MaskPlan
from tests.masking.kinds import clip_of, motion_on, selection_of
from tests.masking.rl.toy import (
    GRID,
    bad_updates,
    copied,
    make,
    noise,
    same,
    teach,
)

PREDICT_RULES = ["random", "uniform", "running_cell", "flow", "everest", "tokenizer"]


def moving(clips: int = 3, *, seed: int = 0) -> Clip:
    tokens = noise(clips, seed).tokens_BND.requires_grad_()
    return clip_of(GRID, tokens=tokens, motion=motion_on(GRID, clips))


def selected(kind: str, plan: MaskPlan, clip: Clip) -> MaskPlan:
    selection = selection_of(kind, GRID, plan.predict_BM.shape[1], budget=9)
    return selection.select(plan, clip, Draws(0))


@pytest.mark.parametrize("kind", PREDICT_RULES)
@pytest.mark.parametrize("mask", ["adamae", "tats"])
def test_the_gradient_is_that_of_the_selected_tokens_alone(mask: str, kind: str) -> None:
    extra: dict[str, Any] = {"weight": 0.5}
    if mask == "tats":
        extra = {"baseline": "none", "entropy": 0.0}
    masker = make(mask, detach=False, **extra)
    for parameter in masker.policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    policy = copy.deepcopy(masker.policy)
    clip, error = moving(), torch.rand(3, 9)
    taught = teach(
        masker,
        0,
        clip,
        errors=lambda _: error,
        change=lambda plan: selected(kind, plan, clip),
    )

    tokens = clip.tokens_BND.detach().requires_grad_()
    log_p = policy(tokens).log_p_BN
    if mask == "adamae":
        weight = 0.5 * error
    else:  # on-policy, the gradient of a ratio is that of its logarithm
        weight = error / (error.std(dim=1, correction=0, keepdim=True) + 1e-6)
    loss = sum(
        -weight[number, m] * log_p[number, token] / error.numel()
        for number in range(3)
        for m, token in enumerate(taught.plan.predict_BM[number].tolist())
    )
    assert isinstance(loss, torch.Tensor)
    expected = torch.autograd.grad(loss, tokens)[0]
    torch.testing.assert_close(clip.tokens_BND.grad, expected, atol=1e-6, rtol=1e-4)
    assert expected.abs().max() > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"rollouts": 3},
        {"rollouts": 2, "epochs": 2, "credit": "visible"},
        {"credit": "visible", "log_prob": "exact"},
        {"log_prob": "exact", "quota": True},
        {"objective": "logprob", "baseline": "clip_mean"},
        {"entropy_target": 0.9},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_way_of_learning_takes_a_selected_plan(changes: dict[str, Any]) -> None:
    masker = make(**changes)
    before = copied(masker.policy.state_dict())
    for step in range(4):
        clip = moving(seed=step)
        taught = teach(
            masker,
            step,
            clip,
            change=lambda plan, step=step, clip=clip: selected(PREDICT_RULES[step], plan, clip),
        )
        assert taught.plan.predict_BM.shape == (3, 9)
        assert taught.metrics["restored"] == 0
    bad = bad_updates(masker)
    assert bad and not any(bad)
    assert not same(masker.policy.state_dict(), before)


@pytest.mark.parametrize("mask", ["adamae", "tats"])
def test_one_predicted_token_is_enough_to_learn_from(mask: str) -> None:
    masker = make(mask)
    before = copied(masker.policy.state_dict())
    teach(
        masker,
        0,
        moving(),
        change=lambda plan: MaskPlan(plan.visible_BK, plan.predict_BM[:, :1].contiguous()),
    )
    assert bad_updates(masker) == [False]
    assert not same(masker.policy.state_dict(), before)
