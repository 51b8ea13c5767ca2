"""Runs of tiny networks that were never trained: random weights, saved as a training saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tatscli.engine.checkpoint import save_checkpoint
from tatscli.nn.vit import build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.tasks.finetune import build_classifier

NAMES = ["falls", "rises", "turns"]


def tiny_recipe(*, model: dict[str, Any] | None = None, **data: Any) -> Recipe:
    """Width 32, two blocks, clips of 8 frames of 32 pixels: 64 tokens."""
    return Recipe.model_validate(
        {
            "data": {
                "store": "none", "frames": 8, "size": 32, "sampling": {"stride": 2}, "workers": 0,
                **data,
            },
            "model": {"width": 32, "depth": 2, "heads": 2, "tubelet": 2, "patch": 8}
            | (model or {}),
            "mask": {"kind": "tube", "ratio": 0.75},
            "run": {"device": "cpu", "precision": "fp32"},
            "finetune": {"head_scale": 20},
        }
    )  # fmt: skip


def save_run(
    folder: Path,
    recipe: Recipe,
    *,
    names: Sequence[str] | None = NAMES,
    seed: int = 0,
    best: bool = False,
    step: int = 1,
) -> Path:
    """Write a run of random weights: fine-tuned for classes of these names, pretrained without."""
    torch.manual_seed(seed)
    if names is None:
        encoder = build_encoder(recipe.model, recipe.grid)
        tensors = {f"encoder.{name}": one for name, one in encoder.state_dict().items()}
        kind = {"kind": "pretrained"}
    else:
        tensors = build_classifier(recipe, classes=len(names)).state_dict()
        kind = {"kind": "finetuned", "class_names": list(names)}
    meta = {**kind, "recipe": recipe.model_dump(mode="json")}
    save_checkpoint(folder, step=step, tensors={"model": tensors}, meta=meta, keep=3, best=best)
    return folder
