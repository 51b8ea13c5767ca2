"""Learned masks learn from the tokens that a selection left, and from no others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tatscli.masking.plan import MaskPlan
from tests.masking.kinds import motion_on, selection_of
from tests.masking.learning.toy import GRID, TOKENS, WIDTH, make, seeded

SELECTIONS = ["random", "uniform", "running_cell", "flow", "everest"]


def selected(kind: str, plan: MaskPlan, tokens: torch.Tensor) -> MaskPlan:
    selection = selection_of(kind, GRID, plan.predict_BM.shape[1], budget=9)
    motion = motion_on(GRID, len(tokens))
    return selection.select(plan, tokens, motion=motion, generator=seeded())


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("mask", ["adamae", "tats"])
def test_the_gradient_is_that_of_the_selected_tokens_alone(mask: str, kind: str) -> None:
    extra: dict[str, Any] = {"weight": 0.5}
    if mask == "tats":
        extra = {"baseline": "none", "entropy": 0.0}
    masker = make(mask, detach=False, **extra)
    for parameter in masker.policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    policy = copy.deepcopy(masker.policy)
    tokens = torch.randn(3, TOKENS, WIDTH)
    plan = selected(kind, masker.plan(tokens.clone(), generator=seeded()), tokens)
    error = torch.rand(plan.predict_BM.shape)
    masker.learn(plan, error)

    tokens.requires_grad_()
    log_p = policy(tokens).log_p_BN
    if mask == "adamae":
        weight = 0.5 * error
    else:  # on-policy, the gradient of a ratio is that of its logarithm
        weight = error / (error.std(dim=1, correction=0, keepdim=True) + 1e-6)
    loss = sum(
        -weight[clip, m] * log_p[clip, token] / plan.predict_BM.numel()
        for clip in range(3)
        for m, token in enumerate(plan.predict_BM[clip].tolist())
    )
    assert isinstance(loss, torch.Tensor)
    expected = torch.autograd.grad(loss, tokens)[0]
    assert masker.token_gradient_BND is not None
    torch.testing.assert_close(masker.token_gradient_BND, expected, atol=1e-6, rtol=1e-4)
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
    before = copy.deepcopy(masker.policy.state_dict())
    updates = 0.0
    for step in range(4):
        tokens = torch.randn(3, TOKENS, WIDTH)
        plan = selected(SELECTIONS[step], masker.plan(tokens), tokens)
        metrics = masker.learn(plan, torch.rand(plan.predict_BM.shape))
        assert not metrics.get("skipped")
        updates += metrics["updates"]
    assert updates >= 1
    after = masker.policy.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_one_predicted_token_is_enough_to_learn_from() -> None:
    for mask in ("adamae", "tats"):
        masker = make(mask)
        plan = masker.plan(torch.randn(3, TOKENS, WIDTH))
        plan = MaskPlan(plan.visible_BK, plan.predict_BM[:, :1].contiguous())
        metrics = masker.learn(plan, torch.rand(3, 1))
        assert (metrics["updates"], metrics["skipped"]) == (1, 0)
