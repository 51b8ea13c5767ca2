"""Saving a training: the contents of a checkpoint, written by a thread in the background."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import torch
from torch import Tensor

from tatscli.engine import distributed
from tatscli.engine.halfway import State
from tatscli.engine.keeping import save_checkpoint
from tatscli.engine.parallel import full_tensors
from tatscli.engine.training import Training
from tatscli.files import in_bytes
from tatscli.machine import free_memory

SHARE = 0.5
"""Share of the free memory that a copy of the state may take."""


class Saver:
    """Writes the checkpoints of a training: copies the state, and writes it in a thread.

    If there is no memory for a copy, training waits for the writing.

    Args:
        training: What is saved.

    Attributes:
        saved: The step that was saved last, or resumed from.
        seconds: How long training has waited: for an earlier write, and for the copy.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._thread: Thread | None = None
        self._problem: BaseException | None = None
        self._pinned: dict[tuple[str, str], Tensor] = {}
        self.saved: int | None = training.done or None
        self.seconds = 0.0

    def save(self, *, best: bool, state: State | None = None) -> None:
        """Save the current state; all processes call this together.

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
        beside = training.world.main and self._has_room(tensors)
        kept = self._collected(tensors, copies=beside)
        if training.world.main:
            self._write(kept, best, beside=beside)
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
        """Raise, without waiting, if a checkpoint could not be written.

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
        """Return `save_seconds` if training has waited since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return {"save_seconds": seconds} if seconds else {}

    def _has_room(self, tensors: State) -> bool:
        """Whether there is memory for a copy that is written in the background; says so if not."""
        size = sum(one.nbytes for named in tensors.values() for one in named.values())
        # What is pinned since an earlier save counts as taken already.
        size = max(0, size - sum(one.nbytes for one in self._pinned.values()))
        free = free_memory()
        if free is None or size <= SHARE * free:
            return True
        self._training.reporter.info(
            f"training waits while a checkpoint is written: a copy of {in_bytes(size)} is more "
            f"than {SHARE:.0%} of the {in_bytes(free)} of free memory"
        )
        return False

    def _collected(self, tensors: State, *, copies: bool) -> State:
        """Return tensors whole, as the first process writes them; all others return none.

        Args:
            tensors: Of each part, perhaps shares.
            copies: Take copies, so that training may change what is left; into pinned memory where
                there is a GPU, which is kept for the next time.
        """
        kept: State = {}
        for part, named in tensors.items():
            for name, whole in full_tensors(named):  # all processes gather, the first keeps
                if not self._training.world.main:
                    continue
                fresh = whole is not named[name]
                if whole.is_cuda and (copies or fresh):
                    whole = self._pinned_copy(part, name, whole)
                elif copies and not fresh:
                    whole = whole.detach().clone()
                kept.setdefault(part, {})[name] = whole
        if self._pinned:
            torch.cuda.synchronize()
        return kept

    def _pinned_copy(self, part: str, name: str, tensor: Tensor) -> Tensor:
        target = self._pinned.get((part, name))
        if target is None or (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
            target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._pinned[part, name] = target
        return target.copy_(tensor.detach(), non_blocking=True)

    def _write(self, tensors: State, best: bool, *, beside: bool) -> None:
        training, step = self._training, self._training.done
        meta = {**training.meta, "best_score": training.best}
        if training.unscored:
            meta["unscored"] = True

        def write() -> None:
            try:
                save_checkpoint(
                    training.folder,
                    step=step,
                    tensors=tensors,
                    meta=meta,
                    keep=training.run.keep,
                    best=best,
                )
            except BaseException as error:  # for the loop, at its next step
                self._problem = error

        if beside:
            self._thread = Thread(target=write, name="save", daemon=True)
            self._thread.start()
        else:
            write()
            self.check()


@contextmanager
def saving(training: Training) -> Iterator[Saver]:
    """Yield a `Saver` whose last checkpoint is on disk at the end of the block, whatever ends it,
    except a second Ctrl-C."""
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
