"""Saving a training: what a checkpoint holds, who writes it, and what is left of one that ends in
bad steps."""

from __future__ import annotations

from pathlib import Path

from tatscli.engine import distributed
from tatscli.engine.bad_steps import BadSteps, Fault
from tatscli.engine.checkpoint import fill, save_checkpoint
from tatscli.engine.learner import Learner
from tatscli.engine.training import Training
from tatscli.errors import TatsError
from tatscli.files import draft_of

BAD_STEP = "bad-step"
"""Folder of a run with the last bad step of a training that ended because of them."""


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


def refuse_bad_steps(training: Training) -> None:
    """Hear of bad steps, and end the training if there were too many in a row; all processes call
    this together.

    Raises:
        TatsError: If so; the last of them is saved for `tats replay`.
    """
    fault = training.bad_steps.check(training.done, training.reporter)
    if fault is None:
        return
    where = training.folder / BAD_STEP
    try:
        save_bad_step(training, fault, where)
        saved = f"the batch is saved in `{where}`"
        hint = f"`tats replay {training.folder}` names module and videos; {fault.remedy}"
    except OSError as error:
        saved, hint = f"the batch cannot be saved: {error.strerror}", fault.remedy
    raise TatsError(
        f"{fault.in_a_row} bad steps in a row, the last at step {fault.step}: "
        f"{fault.facts['reason']}; {saved}",
        hint=hint,
    )


def save_bad_step(training: Training, fault: Fault, where: Path) -> None:
    """Write what a bad step is made of: the weights it found, which have not moved since, and who
    was in the batch of each rank. Data and masks are functions of the step."""
    rows = distributed.gathered([fault.rows])
    if not training.world.main:
        return
    tensors = {
        name: part.tensors()
        for name, part in training.parts.items()
        if not isinstance(part, Learner | BadSteps)
    }
    facts = {
        **training.meta,
        **fault.facts,
        "seed": training.run.seed,
        "rows": rows,
        "precision": str(training.dtype).removeprefix("torch."),
        "device": str(training.device),
    }
    with draft_of(where) as draft:
        named = {name: one for name, one in tensors.items() if one}
        fill(draft, step=fault.step, tensors=named, meta=facts)
