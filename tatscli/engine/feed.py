"""`Feed`: moves micro-batches from the loader to the device.

A thread takes them from the loader, so that waiting for one can be interrupted. On a GPU it also
copies them, one ahead of the running step, on a side stream. On a CPU it takes a micro-batch only
when asked for one: reading never competes with the step, and nothing is read in vain.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any, Self

import torch

from tatscli.engine.training import MicroBatch

_LOOK = 0.1  # seconds between two looks at whether to stop waiting
_PATIENCE = 2.0  # seconds that the thread gets to end


class SideStream:
    """Copies batches on a CUDA stream other than the one that computes.

    Args:
        device: The target.
        cuda: `torch.cuda`, or a stand-in for tests.
    """

    def __init__(self, device: torch.device, cuda: ModuleType | Any = torch.cuda) -> None:
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)

    def enter_thread(self) -> None:
        """Make the device the current one of a thread."""
        self._cuda.set_device(self._device)

    def send(self, batch: MicroBatch) -> tuple[MicroBatch, Any]:
        """Start to copy a batch; return it with the event that marks the end of the copy."""
        with self._cuda.stream(self._stream):
            moved = batch.to(self._device)
            return moved, self._stream.record_event()

    def receive(self, batch: Any, event: Any) -> Any:
        """Make later kernels wait for the batch; the host does not wait."""
        stream = self._cuda.current_stream(self._device)
        stream.wait_event(event)
        # It was allocated on the side stream, which must not reuse its memory before it was used.
        batch.record_stream(stream)
        return batch


class Feed:
    """Hands out the micro-batches of a training, each on its device.

    Leaving its context ends the thread, and closes the batches if they can be closed; so does
    garbage collection.

    Args:
        batches: Micro-batches without end.
        device: Where the model is.
        side: Copies ahead; None makes one where there is a GPU to copy to.

    Attributes:
        waited: Seconds spent waiting for the loader since `begin`.
        rows: Rows in the store of the samples since `begin`.
    """

    def __init__(
        self,
        batches: Iterator[MicroBatch],
        device: torch.device,
        *,
        side: SideStream | None = None,
    ) -> None:
        if side is None and device.type == "cuda" and torch.cuda.is_available():
            side = SideStream(device)
        self._device, self._side = device, side
        self._reading = _Reading(batches, side)
        self._end = weakref.finalize(self, self._reading.close)
        self.begin()

    def begin(self) -> None:
        """Begin an optimiser step."""
        self.waited, self.rows = 0.0, list[int]()

    def take(self, stop: Callable[[], bool]) -> Any | None:
        """Return the next micro-batch; None if there is none yet and `stop` returns True.

        One that arrives later is not lost: the next call returns it.

        Args:
            stop: Called several times a second while there is none.

        Raises:
            DataError: If the loader fails.
        """
        asked = time.perf_counter()
        try:
            found = self._reading.take(stop)
        finally:
            self.waited += time.perf_counter() - asked
        if found is None:
            return None
        rows, batch, event = found
        self.rows += rows
        if self._side is None:
            return batch.to(self._device)
        return self._side.receive(batch, event)

    def close(self) -> None:
        """End the thread and the loader."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reading:
    """State shared by the thread and `Feed`: room for one micro-batch, and whether it is wanted.

    Args:
        batches: Where they come from.
        side: Copies them as soon as the one before was taken; None leaves them on the host, and
            reads one only when it is wanted.
    """

    def __init__(self, batches: Iterator[MicroBatch], side: SideStream | None) -> None:
        self._batches, self._side = batches, side
        self._changed = threading.Condition()
        self._found: tuple[list[int], Any, Any] | BaseException | None = None
        self._wanted = side is not None
        self._closed = False
        self._thread: threading.Thread | None = None

    def take(self, stop: Callable[[], bool]) -> tuple[list[int], Any, Any] | None:
        """Return rows, batch and event, or None if `stop` came first."""
        if self._thread is None:
            # A read that hangs in the kernel must not keep the program from ending.
            self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
            self._thread.start()
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            while self._found is None:
                self._changed.wait(_LOOK)
                if self._found is None and stop():
                    return None
            found = self._found
            if isinstance(found, BaseException):
                raise found
            self._found, self._wanted = None, self._side is not None
            self._changed.notify_all()
            return found

    def close(self) -> None:
        """End the thread, and the batches where they can be closed."""
        with self._changed:
            self._closed, self._found = True, None
            self._changed.notify_all()
        close = getattr(self._batches, "close", None)
        if close is not None:
            with suppress(ValueError):  # a generator at work in the thread, which closes it
                close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)

    def _work(self) -> None:
        try:
            if self._side is not None:
                self._side.enter_thread()  # memory is pinned for the device that is current
            while self._until(lambda: self._wanted and (self._side or self._found is None)):
                batch = next(self._batches)
                rows, event = batch.row_B.tolist(), None
                if not self._until(lambda: self._found is None):
                    return
                if self._side is not None:
                    batch, event = self._side.send(batch)
                self._put((rows, batch, event))
                del batch  # it may be large, and the next is not there yet
        except StopIteration:
            self._put(RuntimeError("the batches of a training came to an end"))
        except BaseException as error:  # whatever it is, it belongs to whoever asked
            self._put(error)

    def _until(self, ready: Callable[[], object]) -> bool:
        """Wait until something is true; return False when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or ready())
            return not self._closed

    def _put(self, found: tuple[list[int], Any, Any] | BaseException) -> None:
        with self._changed:
            if not self._closed:
                self._found = found
                self._changed.notify_all()
