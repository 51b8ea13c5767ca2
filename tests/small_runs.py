"""Runs of tiny networks that were never trained: random weights, saved as a training saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tatscli.engine.keeping import save_checkpoint
from tatscli.nn.classifier import build_classifier
from tatscli.nn.vit import build_encoder
from tatscli.recipe.schema import Recipe
from tatscli.store.reader import Store
from tatscli.store.schema import Settings
from tests.clips import pan, render
from tests.store.stores import prepare

NAMES = ["falls", "rises", "turns"]


def tiny_recipe(store: Path | str = "none", **changes: Any) -> Recipe:
    """Width 32, two blocks, clips of 8 frames of 32 pixels: 64 tokens; `changes` are merged into
    the sections."""
    sections: dict[str, Any] = {
        "data": {
            "store": str(store), "frames": 8, "size": 32, "sampling": {"stride": 2}, "workers": 0,
        },
        "model": {"width": 32, "depth": 2, "heads": 2, "tubelet": 2, "patch": 8},
        "mask": {"kind": "tube", "ratio": 0.75},
        "run": {"device": "cpu", "precision": "fp32"},
        "finetune": {"head_scale": 20},
        "evaluate": {"knn": {"neighbours": 3}},
    }  # fmt: skip
    for name, section in changes.items():
        sections[name] = sections[name] | section
    return Recipe.model_validate(sections)


def save_run(
    folder: Path,
    recipe: Recipe,
    *,
    names: Sequence[str] | None = NAMES,
    seed: int = 0,
    best: bool = False,
    step: int = 1,
    **facts: Any,
) -> Path:
    """Write a run of random weights: fine-tuned for classes of these names, pretrained without;
    `facts` go into `meta.json`."""
    torch.manual_seed(seed)
    if names is None:
        encoder = build_encoder(recipe.model, recipe.grid)
        tensors = {f"encoder.{name}": one for name, one in encoder.state_dict().items()}
        kind = {"kind": "pretrained"}
    else:
        tensors = build_classifier(recipe, classes=len(names)).state_dict()
        kind = {"kind": "finetuned", "class_names": list(names)}
    meta = {**kind, "recipe": recipe.model_dump(mode="json"), **facts}
    save_checkpoint(folder, step=step, tensors={"model": tensors}, meta=meta, keep=3, best=best)
    return folder


MOVES = {"falls": (0, 2), "rises": (0, -2), "turns": (2, 1)}


def render_films(folder: Path, *, frames: int = 24, fps: float = 25) -> Path:
    """Write a video for each class into `val/<class>`, of 48 x 64 pixels, smooth ones."""
    for label, (name, step) in enumerate(MOVES.items()):
        coarse = pan(step, frames=frames + label, height=12, width=16, seed=label)
        pictures = (np.asarray(Image.fromarray(one).resize((64, 48))) for one in coarse)
        render(folder / "val" / name / "a.mp4", pictures, fps=fps, options={"crf": "8"})
    return folder


def store_of(videos: Path, out: Path) -> Store:
    """Prepare a store of pictures of 32 pixels, as large as the views, with next to no loss."""
    prepare(videos, out, settings=Settings(short_side=32, quality=2))
    return Store.open(out)
