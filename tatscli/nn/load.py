"""Runs opened by path, and weights from their checkpoints into modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.nn.positions import carried_over, moved_words, position_tables
from tatscli.nn.vit import Encoder
from tatscli.recipe.load import with_store_found
from tatscli.recipe.schema import Recipe
from tatscli.weights.open import open_foreign
from tatscli.weights.paths import is_foreign, own_folder


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A checkpoint and the recipe it was trained with."""

    recipe: Recipe
    checkpoint: Checkpoint


def open_checkpoint(path: Path | str, *, prefer: str = "last") -> LoadedRun:
    """Find the checkpoint that `path` means and read its recipe.

    Weights of others are opened as `find_weights` does; their recipe is derived from them.

    Raises:
        CheckpointError: If there is none.
    """
    checkpoint = find_weights(path, prefer=prefer)
    recipe = with_store_found(checkpoint.recipe, checkpoint.meta.get("store"))
    return LoadedRun(recipe, checkpoint)


def find_weights(path: Path | str, *, prefer: str = "last") -> Checkpoint:
    """Return the checkpoint that a run or checkpoint folder means, or weights of others as one.

    Of others are read: official files of VideoMAE, VideoMAE V2 and AdaMAE, folders of
    `transformers` with a VideoMAE, and image ViTs of MAE or timm (`weights/`).

    Args:
        path: Folder or file.
        prefer: Which checkpoint of a run, `last` or `best`.

    Raises:
        CheckpointError: If there is none, or it cannot be read whole.
    """
    path = own_folder(Path(path))
    if not is_foreign(path):
        return find_checkpoint(path, prefer=prefer)
    if prefer != "last":
        raise CheckpointError(f"`{path}` holds one set of weights: it has no `{prefer}` checkpoint")
    return open_foreign(path)


def is_tokenizer(path: Path | str) -> bool:
    """Whether a run or checkpoint is a tokenizer; anything else is not."""
    try:
        return find_checkpoint(Path(path)).kind == "tokenizer"
    except CheckpointError:
        return False


def refuse_tokenizer(checkpoint: Checkpoint) -> None:
    """Refuse a tokenizer, which has no ViT encoder.

    Raises:
        CheckpointError: If so.
    """
    if checkpoint.kind == "tokenizer":
        raise CheckpointError(
            f"`{checkpoint.path}` is a tokenizer: it has no ViT encoder",
            hint="give a pretrained or fine-tuned run",
        )


class Copied(NamedTuple):
    """What was taken from a checkpoint; as a string, for messages.

    Attributes:
        tensors: Tensors copied as they are.
        moved: How positions were interpolated; empty if the grid is the run's.
        remarks: Further notes on weights that another program wrote.
    """

    tensors: int
    moved: str = ""
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = (f"{self.tensors} tensors", self.moved, *self.remarks)
        return "; ".join(one for one in said if one)


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
    count = len(given.keys() - position_tables(module)) if moved else len(given)
    return Copied(count, moved, checkpoint.remarks)


def fits(module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's tensors have the names and shapes of a whole module."""
    given, _ = _on_own_grid(module, given, checkpoint)
    return not _compared(module, given)[1]


def positions_moved(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """Say what loading a checkpoint's encoder for a recipe does about positions, if anything."""
    return moved_words(checkpoint.recipe.grid, recipe.grid)


def _on_own_grid(
    module: nn.Module, given: dict[str, Tensor], checkpoint: Checkpoint
) -> tuple[dict[str, Tensor], str]:
    """Bring positions, if the module has any, from the grid of the checkpoint's recipe."""
    if not position_tables(module):
        return given, ""
    return carried_over(module, given, checkpoint.recipe.grid)


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
