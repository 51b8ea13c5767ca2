"""Runs opened by path, and weights from their checkpoints into modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


def load_encoder(encoder: Encoder, checkpoint: Checkpoint) -> int:
    """Copy a checkpoint's encoder weights, pretrained or fine-tuned; every tensor must match.

    Returns:
        The number of tensors copied.

    Raises:
        CheckpointError: If names or shapes differ.
    """
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
        fitting = len(wanted) - len([name for name in wrong if name in wanted])
        raise CheckpointError(
            f"the weights of `{checkpoint.path}` do not fit: {fitting} of {len(wanted)} tensors "
            f"match; the first that does not is `{wrong[0]}`",
            hint="`model` in the recipe must be that of the run: "
            f"{checkpoint.meta['recipe']['model']}",
        )
    module.load_state_dict(given)
