"""Runs opened by path, and weights from their checkpoints into modules."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.nn.positions import carried_over, moved_words, position_tables
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


class Copied(NamedTuple):
    """What was taken from a checkpoint; as a string, how people are told.

    Attributes:
        tensors: Tensors copied as they are.
        moved: What was done about positions; empty where the grid is the run's.
    """

    tensors: int
    moved: str = ""

    def __str__(self) -> str:
        return f"{self.tensors} tensors" + (f"; {self.moved}" if self.moved else "")


def load_encoder(encoder: Encoder, checkpoint: Checkpoint) -> Copied:
    """Copy a checkpoint's encoder weights, pretrained or fine-tuned; every tensor must match.

    Positions come from the run's grid onto the encoder's own (`nn/positions.py`).

    Raises:
        CheckpointError: If names or shapes differ, or it is a tokenizer's.
    """
    refuse_tokenizer(checkpoint)
    given = {
        name.removeprefix("encoder."): value
        for name, value in checkpoint.tensors("model").items()
        if name.startswith("encoder.")
    }
    return copy_weights(encoder, given, checkpoint)


def copy_weights(module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint) -> Copied:
    """Load `given` into `module`, every tensor of both, and positions as `load_encoder`.

    Raises:
        CheckpointError: If names or shapes differ; the message counts and names them.
    """
    given, moved = _on_own_grid(module, given, checkpoint)
    wanted, wrong = _compared(module, given)
    if wrong:
        section = "tokenizer" if checkpoint.kind == "tokenizer" else "model"
        fitting = len(wanted) - len([name for name in wrong if name in wanted])
        more = len(given.keys() - wanted.keys())
        also = f", and it has {more} more" if more else ""
        raise CheckpointError(
            f"the weights of `{checkpoint.path}` do not fit: {fitting} of {len(wanted)} tensors "
            f"match{also}; the first that does not is `{wrong[0]}`",
            hint=f"`{section}` in the recipe must be that of the run: "
            f"{checkpoint.meta['recipe'][section]}",
        )
    module.load_state_dict(given)
    return Copied(len(given.keys() - position_tables(module)) if moved else len(given), moved)


def fits(module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tensors have the names and shapes of a whole module."""
    given, _ = _on_own_grid(module, given, checkpoint)
    return not _compared(module, given)[1]


def positions_moved(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """Say what loading a checkpoint's encoder for a recipe does about positions, if anything."""
    return moved_words(Recipe.model_validate(checkpoint.meta["recipe"]).grid, recipe.grid)


def _on_own_grid(
    module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], str]:
    """Bring positions, if the module has any, from the grid of the checkpoint's recipe."""
    if not position_tables(module):
        return given, ""
    return carried_over(module, given, Recipe.model_validate(checkpoint.meta["recipe"]).grid)


def _compared(
    module: nn.Module, given: dict[str, Tensor]
) -> tuple[dict[str, torch.Size], list[str]]:
    """Return the shapes that a module wants by name, and the names whose tensors do not fit.

    Positions may be given, and need not be.
    """
    tables = position_tables(module)
    wanted = {n: one.shape for n, one in module.state_dict().items() if n not in tables}
    wanted |= {n: one.table_ND.shape for n, one in tables.items() if n in given}
    wrong = sorted(wanted.keys() ^ given.keys())
    wrong += [n for n in wanted.keys() & given.keys() if wanted[n] != given[n].shape]
    return wanted, wrong
