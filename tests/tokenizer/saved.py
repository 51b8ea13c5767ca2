"""A tokenizer that nothing trained, saved as a run."""

from __future__ import annotations

from pathlib import Path

import torch

from tatscli.engine.checkpoint import save_checkpoint
from tatscli.recipe.schema import Data, Recipe, Tokenizer
from tatscli.tokenizer.image import ImageTokenizer


def save_tokenizer(folder: Path, config: Tokenizer, *, size: int) -> Path:
    """Write a run whose checkpoint `tats` takes for a trained tokenizer; return its folder."""
    recipe = Recipe(data=Data(store="", frames=1, size=size), tokenizer=config)
    torch.manual_seed(0)
    save_checkpoint(
        folder,
        step=0,
        tensors={"model": ImageTokenizer(config).state_dict()},
        meta={"kind": "tokenizer", "recipe": recipe.model_dump(mode="json")},
        keep=1,
        best=False,
    )
    return folder
