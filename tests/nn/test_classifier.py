"""The classifier: pooling, layers for layer decay, start values, gradients."""

from __future__ import annotations

import torch

from tatscli.nn.classifier import Classifier
from tatscli.nn.vit import Encoder


def make(**changes: float) -> Classifier:
    torch.manual_seed(0)
    encoder = Encoder(width=32, depth=3, heads=4, grid=(2, 2, 2), tubelet=2, patch=4)
    return Classifier(encoder, 5, **changes)


def test_scores_are_the_pooled_features_through_norm_and_head() -> None:
    model = make(head_scale=1.0).eval()
    video = torch.randn(2, 3, 4, 8, 8)
    features = model.encoder.features(model.encoder.embed(model.encoder.cubes(video)))
    expected = model.head(model.fc_norm(features.mean(1)))
    torch.testing.assert_close(model(video), expected)


def test_layers_count_from_the_patch_embedding_to_the_head() -> None:
    model = make()
    layers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    assert model.layers == 4
    assert layers["encoder.patch_embed.proj.weight"] == 0
    assert layers["encoder.blocks.0.attn.q_bias"] == 1
    assert layers["encoder.blocks.2.mlp.fc2.weight"] == 3
    assert layers["fc_norm.weight"] == layers["head.bias"] == 4
    assert set(layers.values()) == {0, 1, 2, 3, 4}


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = make()
    model(torch.randn(2, 3, 4, 8, 8)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert not model.encoder.norm.weight.requires_grad


def test_the_head_starts_small_by_its_factor() -> None:
    small, plain = make(head_scale=0.001).head.weight, make(head_scale=1.0).head.weight
    torch.testing.assert_close(small, plain * 0.001)
    assert plain.std() > 0.01


def test_dropout_acts_in_training_only() -> None:
    model = make(dropout=0.5, head_scale=1.0)
    video = torch.randn(2, 3, 4, 8, 8)
    assert not torch.equal(model(video), model(video))
    model.eval()
    assert torch.equal(model(video), model(video))
