"""From a checkpoint to a whole system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tatscli.engine.checkpoint import Checkpoint, restore_part
from tatscli.engine.part import Weights
from tatscli.errors import CheckpointError
from tatscli.nn.load import LoadedRun, open_checkpoint
from tatscli.system.system import System, build_system
from tatscli.targets import AllTargets


def load_system(
    path: Path | str, *, device: torch.device | str = "cpu"
) -> tuple[LoadedRun, System]:
    """Rebuild a pretrained system with its weights, in evaluation mode.

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
    if not any(name.startswith("head.") for name in run.checkpoint.tensors("model")):
        raise CheckpointError(
            f"`{path}` is only an encoder: it has no decoder to show predictions of",
            hint="train one with `tats pretrain RECIPE --init`, or give another run",
        )
    system = build_system(run.recipe)
    refuse_other_frozen(system, run.checkpoint)
    restore_part("model", Weights(system.autoencoder), run.checkpoint)
    restore_part("masker", system.masker, run.checkpoint)
    restore_part("targets", AllTargets(system.targets), run.checkpoint)
    return run, system.to(device).eval()


def refuse_other_frozen(system: System, checkpoint: Checkpoint) -> None:
    """Refuse frozen networks other than those trained with.

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
        hint="give the files it was trained with",
    )


def frozen_facts(system: System, resumed: Checkpoint | None) -> dict[str, Any]:
    """Name the frozen networks, of which a checkpoint has no copy, for its `meta.json`.

    Raises:
        CheckpointError: If those of the run to resume were others.
    """
    if resumed is not None:
        refuse_other_frozen(system, resumed)
    frozen = [one.facts for one in system.frozen()]
    return {"frozen": frozen} if frozen else {}
