"""A tokenizer that nothing trained, saved as a run."""

from __future__ import annotations

from pathlib import Path

import torch

from tatscli.engine.keeping import save_checkpoint
from tatscli.recipe.schema import Data, Recipe, Sampling, Tokenizer
from tatscli.tokenizer.build import build_tokenizer


def save_tokenizer(
    folder: Path,
    config: Tokenizer,
    *,
    size: int,
    frames: int = 1,
    sampling: Sampling | None = None,
) -> Path:
    """Write a run whose checkpoint `tats` takes for a trained tokenizer; return its folder.

    Args:
        folder: The run.
        config: The tokenizer.
        size: Of the view.
        frames: Of a clip, the window of a tokenizer of videos.
        sampling: How its clips are drawn; None leaves the default.
    """
    data = {"store": "", "frames": frames, "size": size}
    if sampling is not None:
        data["sampling"] = sampling
    recipe = Recipe(data=Data(**data), tokenizer=config)
    torch.manual_seed(0)
    save_checkpoint(
        folder,
        step=0,
        tensors={"model": build_tokenizer(recipe).state_dict()},
        meta={"kind": "tokenizer", "recipe": recipe.model_dump(mode="json")},
        keep=1,
        best=False,
    )
    return folder
