"""Classifiers that nothing trained, saved as runs, and videos of a store made unreadable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tatscli.engine.checkpoint import save_checkpoint
from tatscli.engine.run import write_run_json
from tatscli.files import write_safely
from tatscli.nn.classifier import build_classifier
from tatscli.recipe.schema import Recipe
from tatscli.recipe.text import dump_recipe
from tatscli.store.reader import Store

TINY = {"width": 32, "depth": 2, "heads": 2, "patch": 8}


def tiny_recipe(store: Path, **changes: Any) -> Recipe:
    """Two narrow blocks over 8 frames of 32 x 32; `changes` are merged into the sections."""
    sections: dict[str, Any] = {
        "data": {"store": str(store), "frames": 8, "size": 32, "workers": 0},
        "model": TINY,
        "mask": {"kind": "tube", "ratio": 0.75},
        "run": {"device": "cpu"},
        "evaluate": {"knn": {"neighbours": 3}},
    }
    for name, section in changes.items():
        sections[name] = sections.get(name, {}) | section
    return Recipe.model_validate(sections)


def save_classifier(folder: Path, recipe: Recipe, *, seed: int = 0) -> Path:
    """Write a run with a classifier that is sure of what it says, by random weights."""
    store = Store.open(recipe.data.store)
    torch.manual_seed(seed)
    model = build_classifier(recipe, classes=len(store.class_names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.6 if name.startswith("head") else 0.05
            parameter.add_(torch.randn_like(parameter) * scale)
    save_checkpoint(
        folder,
        step=4,
        tensors={"model": model.state_dict()},
        meta={
            "kind": "finetuned",
            "name": "tiny",
            "recipe": recipe.model_dump(mode="json"),
            "store_fingerprint": store.fingerprint(),
            "class_names": store.class_names,
            "tats": "0.1.0",
            "init": None,
            "best_score": 0.25 + 0.1 * seed,
        },
        keep=1,
        best=False,
    )
    write_safely(folder / "recipe.yaml", dump_recipe(recipe))
    facts = {"recipe": "tiny", "started": "2026-01-01T00:00:00+00:00"}
    write_run_json(folder, {**facts, "derived": {"total_steps": 4}})
    return folder


def spoiled(store: Path, copy: Path, frames: dict[str, Sequence[int] | None]) -> Path:
    """Copy a store and overwrite JPEGs of some videos: the frames named, or None for all.

    Neither manifest nor fingerprint changes.
    """
    shutil.copytree(store, copy)
    opened = Store.open(copy)
    for row, record in enumerate(opened.rows):
        if record.id not in frames:
            continue
        assert record.shard is not None
        shard = copy / record.shard
        content = bytearray(shard.read_bytes())
        size = int.from_bytes(content[:8], "little")
        begin, end = json.loads(content[8 : 8 + size])[f"{record.id}/jpeg"]["data_offsets"]
        lengths = [len(one) for one in opened.jpegs(row, range(record.frames))]
        places = frames[record.id]
        assert sum(lengths) == end - begin
        for frame in range(record.frames) if places is None else places:
            start = 8 + size + begin + sum(lengths[:frame])
            content[start : start + lengths[frame]] = bytes(lengths[frame])
        shard.unlink()
        shard.write_bytes(content)
    return copy
