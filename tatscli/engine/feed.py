"""`Feed`: micro-batches on their way from the loader to the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tatscli.engine.training import MicroBatch


class Feed:
    """Hands out the micro-batches of a training, each on its device.

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
        batch = next(self._batches)
        self.waited += time.perf_counter() - asked
        self.rows += batch.row_B.tolist()
        return batch.to(self._device)
