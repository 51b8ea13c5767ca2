"""Runs opened by path, and weights from their checkpoints into modules."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A checkpoint and the recipe it was trained with."""

    recipe: Recipe
    checkpoint: Checkpoint


def open_checkpoint(path: Path | str, *, prefer: str = "last") -> LoadedRun:
    """Find the checkpoint that `path` means and read its recipe.

    Raises:
        CheckpointError: If there is none.
    """
    checkpoint = find_checkpoint(Path(path), prefer=prefer)
    return LoadedRun(Recipe.model_validate(checkpoint.meta["recipe"]), checkpoint)


def is_tokenizer(path: Path | str) -> bool:
    """Whether a run or checkpoint is a tokenizer; anything that is no run is not."""
    try:
        return find_checkpoint(Path(path)).kind == "tokenizer"
    except CheckpointError:
        return False


def refuse_tokenizer(checkpoint: Checkpoint) -> None:
    """Find out that a checkpoint has an encoder of another kind.

    Raises:
        CheckpointError: If so.
    """
    if checkpoint.kind == "tokenizer":
        raise CheckpointError(
            f"`{checkpoint.path}` is a tokenizer: it has no ViT encoder",
            hint="name a pretrained or fine-tuned run; a target takes a tokenizer's codes",
        )


_HARMLESS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
"""Names in Lightning's checkpoints beside the tensors; a stand-in is put in their place."""


class _Inert:
    """Stands in for a class whose name a file holds, and whose code is not wanted."""


def read_weights(path: Path, *, key: str) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, or what `torch.save` wrote of nothing but tensors.

    Args:
        path: The file.
        key: Recipe key that names it, for messages.

    Raises:
        CheckpointError: If it is not there, is damaged, or would run code on being read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in _HARMLESS]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"`{key}: {path}` holds more than tensors and is not read, for that could run its "
            f"code: {reason}",
            hint="save its state dict alone, as safetensors",
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(f"`{key}: {path}` cannot be read: {error}") from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = {str(name): one for name, one in found.items() if isinstance(one, Tensor)}
    if not tensors:
        raise CheckpointError(f"`{key}: {path}` holds no tensors")
    return tensors


def load_encoder(encoder: Encoder, checkpoint: Checkpoint) -> int:
    """Copy a checkpoint's encoder weights, pretrained or fine-tuned; every tensor must match.

    Returns:
        The number of tensors copied.

    Raises:
        CheckpointError: If names or shapes differ, or it is a tokenizer's.
    """
    refuse_tokenizer(checkpoint)
    given = {
        name.removeprefix("encoder."): value
        for name, value in checkpoint.tensors("model").items()
        if name.startswith("encoder.")
    }
    copy_weights(encoder, given, checkpoint)
    return len(given)


def copy_weights(module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Load `given` into `module`, every tensor of both.

    Raises:
        CheckpointError: If names or shapes differ; the message counts and names them.
    """
    wanted = module.state_dict()
    wrong = sorted(wanted.keys() ^ given.keys())
    wrong += [n for n in wanted.keys() & given.keys() if wanted[n].shape != given[n].shape]
    if wrong:
        section = "tokenizer" if checkpoint.kind == "tokenizer" else "model"
        fitting = len(wanted) - len([name for name in wrong if name in wanted])
        raise CheckpointError(
            f"the weights of `{checkpoint.path}` do not fit: {fitting} of {len(wanted)} tensors "
            f"match; the first that does not is `{wrong[0]}`",
            hint=f"`{section}` in the recipe must be that of the run: "
            f"{checkpoint.meta['recipe'][section]}",
        )
    module.load_state_dict(given)
