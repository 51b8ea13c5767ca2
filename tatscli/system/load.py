"""From a checkpoint to objects, and weights from one model to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tatscli.engine.checkpoint import Checkpoint, find_checkpoint, restore_part
from tatscli.engine.part import Weights
from tatscli.errors import CheckpointError
from tatscli.nn.vit import Encoder
from tatscli.recipe.schema import Recipe
from tatscli.system.system import System, build_system


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


def load_system(
    path: Path | str, *, device: torch.device | str = "cpu"
) -> tuple[LoadedRun, System]:
    """Rebuild a pretrained system with its weights, ready to look at.

    Raises:
        CheckpointError: If `path` holds no pretraining checkpoint.
    """
    run = open_checkpoint(path)
    if run.checkpoint.kind != "pretrained":
        raise CheckpointError(
            f"`{path}` is a {run.checkpoint.kind} run: it has an encoder and a classifier, "
            "but no mask or decoder",
            hint="give the pretraining run it started from",
        )
    system = build_system(run.recipe)
    refuse_other_frozen(system, run.checkpoint)
    restore_part("model", Weights(system.autoencoder), run.checkpoint)
    restore_part("masker", system.masker, run.checkpoint)
    return run, system.to(device).eval()


def refuse_other_frozen(system: System, checkpoint: Checkpoint) -> None:
    """Find out that the frozen networks are not those that were trained with.

    Raises:
        CheckpointError: If the weights differ; paths may.
    """
    before, now = checkpoint.meta.get("frozen", []), [one.facts for one in system.frozen()]
    if [one["sha256"] for one in before] == [one["sha256"] for one in now]:
        return
    then, here = (
        ", ".join(f"`{one['path']}` (sha256 {one['sha256'][:12]})" for one in facts) or "none"
        for facts in (before, now)
    )
    raise CheckpointError(
        f"`{checkpoint.path}` was trained with other frozen networks: {then}; here: {here}",
        hint="name the files it was trained with",
    )


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
