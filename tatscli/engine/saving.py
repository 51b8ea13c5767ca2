"""Saving a training: what a checkpoint holds, and who writes it."""

from __future__ import annotations

from tatscli.engine import distributed
from tatscli.engine.checkpoint import save_checkpoint
from tatscli.engine.training import Training


def save(training: Training, *, best: bool) -> None:
    """Write a checkpoint of where a training stands; all processes call this together."""
    if training.world.main:
        tensors = {name: part.tensors() for name, part in training.parts.items()}
        save_checkpoint(
            training.folder,
            step=training.done,
            tensors={name: named for name, named in tensors.items() if named},
            meta={**training.meta, "best_score": training.best},
            keep=training.run.keep,
            best=best,
        )
    distributed.wait()
