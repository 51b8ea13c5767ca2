"""Ctrl-C and SIGTERM during training: finish the step, save, leave with 130 or 143."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tatscli.errors import Exit


class StopRequest:
    """Remembers the first signal; a second Ctrl-C interrupts at once.

    Attributes:
        exit_code: 0 while nobody asked to stop.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.exit_code = Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request for the duration of the block (main thread only)."""
    request = StopRequest()
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = [signal.signal(number, request._hear) for number in numbers]
    try:
        yield request
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)
