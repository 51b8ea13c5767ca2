"""The table of tensors says what the modules have, and recipes describe what was measured."""

from __future__ import annotations

import pytest
import torch

from tatscli.errors import CheckpointError
from tatscli.nn.classifier import build_classifier
from tatscli.nn.vit import SIZES
from tatscli.recipe.schema import Recipe
from tatscli.system.system import build_system
from tatscli.weights.spec import ModelSpec, Vit, measured, recipe_of, shapes_of, spec_of

FORMS = [
    ModelSpec(Vit(32, 2, 2, 128), 2, 8, decoder=Vit(16, 1, 1, 64), frames=8, size=32),
    ModelSpec(Vit(48, 3, 4, 100), 4, 8, decoder=Vit(24, 2, 3, 70), frames=8, size=(32, 48)),
    ModelSpec(Vit(*SIZES["giant"]), 2, 14, decoder=Vit(512, 4, 8, 2234)),
]


def modules(recipe: Recipe, classes: int | None) -> dict[str, torch.Size]:
    with torch.device("meta"):
        if classes is None:
            module = build_system(recipe).autoencoder
        else:
            module = build_classifier(recipe, classes=classes)
    return {name: tuple(one.shape) for name, one in module.state_dict().items()}


@pytest.mark.parametrize("spec", FORMS, ids=["nano", "odd", "giant"])
def test_shapes_are_those_of_the_modules(spec: ModelSpec) -> None:
    recipe = recipe_of(spec, "some")
    assert shapes_of(spec) == modules(recipe, None)
    assert spec_of(recipe) == spec
    classifier = ModelSpec(spec.encoder, spec.tubelet, spec.patch, None, 5, spec.frames, spec.size)
    assert shapes_of(classifier) == modules(recipe_of(classifier, "some"), 5)


@pytest.mark.parametrize("spec", FORMS, ids=["nano", "odd", "giant"])
def test_a_form_is_read_off_its_tensors(spec: ModelSpec) -> None:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes_of(spec).items()}
    heads, decoder_heads = spec.encoder.heads, spec.decoder.heads
    found = measured(tensors, called="x", heads=heads, decoder_heads=decoder_heads)
    assert (found.encoder, found.decoder) == (spec.encoder, spec.decoder)
    assert (found.tubelet, found.patch) == (spec.tubelet, spec.patch)


@pytest.mark.parametrize("size", ["small", "base", "large", "huge", "giant"])
def test_heads_of_published_widths_are_known(size: str) -> None:
    vit = Vit(*SIZES[size])
    decoder = {"small": 192, "base": 384, "large": 512, "huge": 640, "giant": 512}[size]
    spec = ModelSpec(vit, 2, 16, decoder=Vit(decoder, 1, 1, 4))
    tensors = {name: torch.empty(one, device="meta") for name, one in shapes_of(spec).items()}
    found = measured(tensors, called="x")
    assert found.encoder == vit
    assert found.decoder.heads == {192: 3, 384: 6, 512: 8, 640: 8}[decoder]
    assert recipe_of(found, "x").model.size == size


def test_heads_of_other_widths_are_asked_for() -> None:
    tensors = {name: torch.empty(one) for name, one in shapes_of(FORMS[0]).items()}
    with pytest.raises(
        CheckpointError, match="of the encoder of `x`, of width 32, is unknown"
    ) as caught:
        measured(tensors, called="x")
    assert "--heads N" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="5 heads do not divide the width 32"):
        measured(tensors, called="x", heads=5)
