"""The moving average of a network: weights by the formula, buffers as they are."""

from __future__ import annotations

import torch
from torch import nn

from tatscli.nn.averaged import Following
from tatscli.nn.batch_norm import BatchNorm


def test_weights_follow_by_the_formula_and_buffers_at_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), BatchNorm(3)).requires_grad_(True)
    network[0].bias.requires_grad_(False)
    following = Following(network, 0.4)
    mean = {name: value.clone() for name, value in network.named_parameters()}
    still = mean["0.bias"].clone()
    for step in range(1, 9):
        with torch.no_grad():
            network[0].weight.normal_()
            network(torch.randn(5, 3))
        following.after_step(step, 8)
        momentum = min(0.4, (1 + step) / (10 + step))
        for name, value in network.named_parameters():
            mean[name] = momentum * mean[name] + (1 - momentum) * value.detach()
    average = following.average.network
    for name, value in average.named_parameters():
        torch.testing.assert_close(value, mean[name])
        assert not value.requires_grad
    assert torch.equal(average[0].bias, still)  # what does not move has no rounding
    assert torch.equal(average[1].running_mean_D, network[1].running_mean_D)
    assert not average.training and network.training
    parts = following.parts()
    assert torch.equal(parts["model"].tensors()["0.weight"], average[0].weight)
    assert torch.equal(parts["trained"].tensors()["0.weight"], network[0].weight)
