"""Signals during training: requests to stop, and how loops notice them.

SIGTERM, Ctrl-C, SIGHUP and SIGUSR1 ask it to save and stop; the exit code says which it was. An
ignored SIGHUP, as under `nohup`, stays ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from tatscli.engine import distributed
from tatscli.errors import Exit

T = TypeVar("T")

CODES = {
    "SIGINT": Exit.INTERRUPTED,
    "SIGTERM": Exit.TERMINATED,
    "SIGHUP": Exit.HUNG_UP,
    "SIGUSR1": Exit.WARNED,
}
"""Signals that end a training, and the exit codes that say so."""

PATIENCE = 10.0
"""Seconds after a signal that a step, or scoring, may continue before it is dropped."""

_ONE_KEY = 0.5  # seconds in which a terminal and a launcher may both pass on the same Ctrl-C
_active: list[StopRequest] = []


class StopNow(BaseException):
    """Interrupts what can be repeated, such as scoring; `except Exception` does not catch it.

    Args:
        code: The exit code.
        alone: Whether other ranks may still be busy with it.
    """

    def __init__(self, code: int, *, alone: bool) -> None:
        super().__init__(code)
        self.code = code
        self.alone = alone


class StopRequest:
    """Remembers the first signal; a second Ctrl-C interrupts at once.

    Attributes:
        exit_code: 0 while nobody asked to stop.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._heard = 0.0
        self._insists = False

    @property
    def overdue(self) -> bool:
        """Whether the signal came so long ago that there is no more waiting."""
        return bool(self.exit_code) and time.monotonic() - self._heard > PATIENCE

    def tell(self, code: int) -> None:
        """Note that a rank was told to stop."""
        if code and not self.exit_code:
            self.exit_code, self._heard = code, time.monotonic()

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """Raise `StopNow` anywhere in the block once a signal is overdue."""
        over, here = threading.Event(), threading.get_ident()

        def watch() -> None:
            while not over.wait(0.25):
                if self.overdue:
                    self._insists = True
                    signal.pthread_kill(here, signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch, name="stop-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self._insists = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._insists:
            self._insists = False
            raise StopNow(self.exit_code, alone=True)
        again = self.exit_code and time.monotonic() - self._heard > _ONE_KEY
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.tell(CODES[signal.Signals(number).name])


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn these signals into a request for the duration of the block (main thread only)."""
    request = StopRequest()
    earlier = {}
    for name in CODES:
        number = getattr(signal, name, None)  # Windows has but two of them
        if number is None:
            continue
        if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue
        earlier[number] = signal.signal(number, request.hear)
    _active.append(request)
    try:
        yield request
    finally:
        _active.remove(request)
        for number, handler in earlier.items():
            signal.signal(number, handler)


def heeding(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches until a training of which this is a part is told to stop; elsewhere all.

    All ranks must go through the loop, though they may have unlike numbers of batches: they agree
    before each one, and leave together.

    Raises:
        StopNow: If any rank was told.
    """
    if not _active:
        yield from batches
        return
    request, arriving = _active[-1], iter(batches)
    while True:
        batch = next(arriving, None)
        code, more = distributed.agreed([request.exit_code, batch is not None])
        if code:
            raise StopNow(int(code), alone=False)
        if batch is not None:
            yield batch
        elif not more:
            return
