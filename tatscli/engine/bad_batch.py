"""What is left of a training that ends in bad steps: the last of them, for `tats replay`.

    bad-step/{model,masker,targets ...}.safetensors  meta.json

It is laid out as a checkpoint, without optimisers: the weights that the step found, which have not
moved since, and in `meta.json` the batch: of every rank rows of the store, and names, frames and
crops of its clips. Pixels and masks are functions of the step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from tatscli.engine import distributed
from tatscli.engine.bad_steps import BadSteps, Fault
from tatscli.engine.checkpoint import FORMAT, Checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.parallel import full_tensors
from tatscli.engine.training import Training
from tatscli.errors import DataError, TatsError, UsageError
from tatscli.files import draft_of, system_error, write_safely
from tatscli.jsonfiles import read_object, reason_of
from tatscli.tensors import save_tensors

FOLDER = "bad-step"


def refuse_bad_steps(training: Training) -> None:
    """Hear of bad steps, and end the training if there were too many in a row; all processes call
    this together.

    Raises:
        TatsError: If so; the last of them is saved first.
    """
    reporter = training.reporter if training.world.main else None
    fault = training.bad_steps.check(training.done, reporter)
    if fault is None:
        return
    where = training.folder / FOLDER
    try:
        save_bad_step(training, fault, where)
        saved = f"the batch is saved in `{where}`"
        hint = f"`tats replay {training.folder}` names module and videos; {fault.remedy}"
    except Exception as error:
        number = system_error(error)
        if number is None:
            raise
        saved, hint = f"the batch cannot be saved: {os.strerror(number)}", fault.remedy
    raise TatsError(
        f"{fault.what}: {fault.facts['reason']}; {saved}",
        hint=hint,
    )


def save_bad_step(training: Training, fault: Fault, where: Path) -> None:
    """Write a bad step; all processes call this together.

    Raises:
        OSError, SafetensorError: If it cannot be written.
    """
    facts: dict[str, Any] = {
        "format": FORMAT,
        "step": fault.done,
        **training.meta,
        **fault.facts,
        "seed": training.run.seed,
        "rows": distributed.gathered([fault.rows]),
        "clips": distributed.gathered([_clips(training, fault)]),
        "precision": str(training.dtype).removeprefix("torch."),
        "device": str(training.device),
    }
    kept = dict[str, dict[str, Tensor]]()
    for name, part in training.parts.items():
        if not isinstance(part, Learner | BadSteps):
            for key, one in full_tensors(part.tensors()):  # all processes gather, one keeps
                if training.world.main:
                    kept.setdefault(name, {})[key] = one.detach().cpu()
    try:
        if training.world.main:
            with draft_of(where) as draft:
                draft.mkdir()
                for name, tensors in kept.items():
                    save_tensors(draft / f"{name}.safetensors", tensors)
                text = json.dumps(facts, indent=1, ensure_ascii=False)
                write_safely(draft / "meta.json", text)
    finally:
        distributed.wait()  # a launcher ends all processes as soon as one has failed


def _clips(training: Training, fault: Fault) -> list[dict[str, Any]] | None:
    return None if training.describe is None else training.describe(fault.done, fault.rows)


def read_bad_step(run: Path) -> Checkpoint:
    """Open the bad step that a training has left.

    Args:
        run: The run folder.

    Raises:
        UsageError: If there is none.
        DataError: If it cannot be read.
    """
    if not run.is_dir():
        raise UsageError(f"`{run}` is no run folder", hint="give one such as `runs/ucf101`")
    folder = run / FOLDER
    meta = read_object(folder / "meta.json")
    if meta is None:
        raise UsageError(
            f"`{run}` has no bad step to replay: its training did not end because of one",
            hint="`skipped` in its metrics.jsonl counts single steps, which training survives; "
            "`run.max_bad_steps=1` ends it at the first",
        )
    try:
        _BadStep.model_validate(meta, strict=True)
    except ValidationError as error:
        raise DataError(f"`{folder / 'meta.json'}` is damaged: {reason_of(error)}") from error
    return Checkpoint(folder, meta)


class _BadStep(BaseModel):
    """What is read of the `meta.json` of a bad step; there is more."""

    kind: Literal["pretrained", "finetuned", "tokenizer"]
    step: int
    name: str
    recipe: dict[str, Any]
    store_fingerprint: str
    rows: Annotated[list[list[int]], Field(min_length=1)]
    precision: Literal["float32", "bfloat16", "float16"]
    seed: int
    reason: str
    limit: float | None
