"""Runs with random weights that nothing trained, by the sizes of their networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tatscli.engine.keeping import save_checkpoint
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.schema import ClassGroup
from tatscli.system.system import build_system
from tatscli.weights.spec import ModelSpec, Vit
from tests.nn.videomae_weights import randomize

NANO = ModelSpec(Vit(32, 2, 2, 128), 2, 8, decoder=Vit(16, 1, 1, 64), frames=8, size=32)


def make_run(
    folder: Path,
    recipe: Recipe,
    classes: list[str] | None = None,
    groups: dict[str, ClassGroup] | None = None,
    **more: Any,
) -> Path:
    """Write a run with random weights: of a classifier where classes are named."""
    torch.manual_seed(6)
    if classes is None:
        module: Any = build_system(recipe).autoencoder
    else:
        module = build_classifier(recipe, classes=len(classes), groups=groups)
    randomize(module)
    meta = {"kind": "pretrained", "name": folder.name, "recipe": recipe.model_dump(mode="json")}
    if classes is not None:
        meta |= {"kind": "finetuned", "class_names": classes}
    tensors = {"model": module.state_dict()}
    save_checkpoint(folder, step=7, tensors=tensors, meta=meta | more, keep=1, best=False)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return folder
