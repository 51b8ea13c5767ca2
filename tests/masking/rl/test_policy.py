"""The sampler network: uniform at first, in float32, reading tokens, place and time."""

from __future__ import annotations

import math

import pytest
import torch

from tatscli.masking.rl.policy import Policy
from tests.nn.counting import counted_macs

GRID = (2, 3, 4)


def make(*, inputs: int = 6, width: int = 16) -> Policy:
    torch.manual_seed(0)
    return Policy(grid=GRID, inputs=inputs, width=width, heads=4)


@pytest.mark.parametrize("inputs", [6, 16])
def test_the_first_policy_is_exactly_uniform(inputs: int) -> None:
    log_p, value = make(inputs=inputs)(torch.randn(3, 24, inputs) * 10)
    assert torch.equal(log_p, torch.zeros(3, 24).log_softmax(-1))
    assert log_p[0, 0].item() == pytest.approx(-math.log(24))
    assert value.shape == (3,)


def test_a_linear_map_comes_first_only_where_widths_differ() -> None:
    assert not [name for name, _ in make(inputs=16).named_parameters() if name.startswith("input")]
    assert make(inputs=6).input.weight.shape == (16, 6)


def test_logits_depend_on_tokens_and_place() -> None:
    policy = make()
    torch.nn.init.normal_(policy.actor.weight)
    tokens = torch.randn(1, 24, 6)
    log_p = policy(tokens).log_p_BN
    assert log_p.std() > 0.01
    # With a zero position table sites of a slice are alike; places set them apart.
    order = torch.cat([torch.randperm(12), 12 + torch.randperm(12)])
    torch.testing.assert_close(policy(tokens[:, order]).log_p_BN, log_p[:, order])
    torch.nn.init.normal_(policy.position)
    placed = policy(tokens).log_p_BN
    assert (policy(tokens[:, order]).log_p_BN - placed[:, order]).abs().max() > 1e-2


def test_half_precision_stops_before_the_heads() -> None:
    policy = make()
    torch.nn.init.normal_(policy.actor.weight)
    with torch.autocast("cpu", torch.bfloat16):
        output = policy(torch.randn(2, 24, 6).bfloat16())
    assert output.log_p_BN.dtype == output.value_B.dtype == torch.float32
    torch.testing.assert_close(output.log_p_BN.exp().sum(-1), torch.ones(2), atol=1e-6, rtol=0)


def test_weight_decay_is_for_matrices_of_trunk_and_input() -> None:
    policy = make()
    decayed, free = policy.decay_groups(0.05)
    names = {parameter: name for name, parameter in policy.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {
        "input.weight",
        *(f"trunk.attn.{part}.weight" for part in ("qkv", "proj_q", "proj_kv", "proj")),
        "trunk.mlp.fc1.weight",
        "trunk.mlp.fc2.weight",
    }
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)


def test_the_full_width_sampler_costs_what_the_method_note_computes() -> None:
    with torch.device("meta"):
        policy = Policy(grid=(8, 14, 14), inputs=768, width=768, heads=12)
        macs = counted_macs(lambda: policy(torch.empty(1, 1568, 768)))
    assert macs == pytest.approx(17.9e9, rel=0.005)
