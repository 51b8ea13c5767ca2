"""Saving a training: what a checkpoint holds, and who writes it."""

from __future__ import annotations

from torch import Tensor

from tatscli.engine import distributed
from tatscli.engine.checkpoint import save_checkpoint
from tatscli.engine.parallel import full_tensors
from tatscli.engine.training import Training


def save(training: Training, *, best: bool) -> None:
    """Write a checkpoint of where a training stands; all processes call this together."""
    tensors = dict[str, dict[str, Tensor]]()
    for name, part in training.parts.items():
        kept = tensors[name] = {}
        for key, tensor in full_tensors(part.tensors()):  # all processes gather, one keeps
            if training.world.main:
                kept[key] = tensor.detach().cpu()
    if training.world.main:
        save_checkpoint(
            training.folder,
            step=training.done,
            tensors={name: named for name, named in tensors.items() if named},
            meta={**training.meta, "best_score": training.best},
            keep=training.run.keep,
            best=best,
        )
    distributed.wait()
