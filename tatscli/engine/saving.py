"""Saving a training: what a checkpoint holds, and a thread that writes it while steps go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread

import torch
from torch import Tensor

from tatscli.data.memory import free_memory
from tatscli.engine import distributed
from tatscli.engine.halfway import State
from tatscli.engine.keeping import save_checkpoint
from tatscli.engine.training import Training
from tatscli.files import in_bytes

SHARE = 0.5
"""Of the free memory that a copy of what is saved may take."""


class Saver:
    """Writes the checkpoints of a training: takes a copy, and lets a thread write it.

    Where memory has no room for a copy, training waits for the writing.

    Args:
        training: What is saved.

    Attributes:
        saved: The step that was saved last, or resumed from.
        seconds: How long training has waited: for an earlier write to end, and for the copy.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._thread: Thread | None = None
        self._problem: BaseException | None = None
        self._pinned: dict[tuple[str, str], Tensor] = {}
        self.saved: int | None = training.done or None
        self.seconds = 0.0

    def save(self, *, best: bool, state: State | None = None) -> None:
        """Save where the training stands; all processes call this together.

        Args:
            best: Whether this is the best so far.
            state: Tensors to save in place of the current ones.

        Raises:
            CheckpointError: If the checkpoint before this one could not be written.
        """
        began = time.perf_counter()
        training = self._training
        tensors = state or {name: part.tensors() for name, part in training.parts.items()}
        self.saved = training.done
        if training.world.main:
            self.wait()
            self._write({name: named for name, named in tensors.items() if named}, best)
        self.seconds += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: If it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Find out, without waiting, that a checkpoint could not be written.

        Raises:
            CheckpointError: If so.
        """
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def finish(self) -> None:
        """Wait, on all processes, until the last checkpoint is on disk."""
        self.wait()
        distributed.wait()

    def waited(self) -> dict[str, float]:
        """Return `save_seconds`, where training has waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return {"save_seconds": seconds} if seconds else {}

    def _write(self, tensors: Mapping[str, Mapping[str, Tensor]], best: bool) -> None:
        training = self._training
        size = sum(one.nbytes for named in tensors.values() for one in named.values())
        free = free_memory()
        beside = free is None or size <= SHARE * free
        meta = {**training.meta, "best_score": training.best}
        if training.unscored:
            meta["unscored"] = True
        step = training.done
        copies = self._copied(tensors) if beside else tensors

        def write() -> None:
            try:
                save_checkpoint(
                    training.folder,
                    step=step,
                    tensors=copies,
                    meta=meta,
                    keep=training.run.keep,
                    best=best,
                )
            except BaseException as error:  # for the loop, at its next step
                self._problem = error

        if beside:
            self._thread = Thread(target=write, name="save", daemon=True)
            self._thread.start()
            return
        training.reporter.info(
            f"training waits while a checkpoint is written: a copy of {in_bytes(size)} is more "
            f"than {SHARE:.0%} of the {in_bytes(free or 0)} of free memory"
        )
        write()
        self.check()

    def _copied(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> State:
        """Copy tensors to the host: on GPUs into pinned memory, which is kept for the next time."""
        copies: State = {}
        for part, named in tensors.items():
            copies[part] = {}
            for name, one in named.items():
                target = self._pinned.get((part, name)) if one.is_cuda else None
                if target is None or (target.shape, target.dtype) != (one.shape, one.dtype):
                    target = torch.empty(one.shape, dtype=one.dtype, pin_memory=one.is_cuda)
                if one.is_cuda:
                    self._pinned[part, name] = target
                target.copy_(one.detach(), non_blocking=True)
                copies[part][name] = target
        if self._pinned:
            torch.cuda.synchronize()
        return copies


@contextmanager
def saving(training: Training) -> Iterator[Saver]:
    """Give a `Saver`, whose last checkpoint is on disk at the end of the block, whatever ends it,
    but for a second Ctrl-C."""
    saver = Saver(training)
    try:
        yield saver
    except KeyboardInterrupt:
        raise
    except BaseException:
        try:
            saver.wait()
        except Exception as error:  # the reason of the end is the one to be told
            training.reporter.warn(f"{error}")
        raise
    saver.finish()
