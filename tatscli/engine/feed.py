"""`Feed`: micro-batches on their way from the loader to the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import torch

from tatscli.engine.training import MicroBatch

_POLL = 0.1  # seconds between two looks at whether to go on waiting


class Feed:
    """Hands out the micro-batches of a training, each on its device.

    The loader is asked by a thread, and only when a batch is wanted: whoever waits for one can hear
    a signal meanwhile, and stop waiting.

    Args:
        batches: Micro-batches without end.
        device: Where the model is.

    Attributes:
        waited: Seconds spent waiting for the loader since `begin`.
        rows: Where the samples since `begin` came from.
    """

    def __init__(self, batches: Iterator[MicroBatch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._wanted, self._given = SimpleQueue[bool](), SimpleQueue[Any]()
        self._asking = False
        self._thread = Thread(target=self._ask, name="feed", daemon=True)
        self._thread.start()
        self.begin()

    def begin(self) -> None:
        """Begin an optimiser step."""
        self.waited, self.rows = 0.0, list[int]()

    def take(self, stop: Callable[[], bool]) -> Any | None:
        """Return the next micro-batch; None where there is none yet and `stop` has come true.

        Raises:
            DataError: If the loader has to give up.
        """
        asked = time.perf_counter()
        if not self._asking:
            self._asking = True
            self._wanted.put(True)
        try:
            while True:
                try:
                    batch = self._given.get(timeout=_POLL)
                    break
                except Empty:
                    if stop():
                        return None
        finally:
            self.waited += time.perf_counter() - asked
        self._asking = False
        if isinstance(batch, BaseException):
            raise batch
        self.rows += batch.row_B.tolist()
        return batch.to(self._device)

    def close(self) -> None:
        """End the loader, unless it hangs: then its workers end with this process."""
        self._wanted.put(False)
        self._thread.join(timeout=_POLL)
        if not self._thread.is_alive() and hasattr(self._batches, "close"):
            self._batches.close()

    def _ask(self) -> None:
        while self._wanted.get():
            try:
                given: Any = next(self._batches)
            except BaseException as error:  # for whoever takes it
                given = error
            self._given.put(given)
