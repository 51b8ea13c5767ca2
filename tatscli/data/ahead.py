"""Reading several sources at once, and returning their items in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

Source = TypeVar("Source")
Item = TypeVar("Item")

_WAIT = 0.1  # seconds between two looks at whether anybody still wants what is read
_PATIENCE = 1.0  # seconds that a reader gets to notice that nobody does


class _End:
    """Stands behind the last item; `error` is what ended the reading, if anything did."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


def read_ahead(
    sources: Iterable[Source],
    read: Callable[[Source], Iterator[Item]],
    *,
    threads: int,
    depth: int = 2,
) -> Iterator[Iterator[Item]]:
    """Yield for every source, in order, an iterator over what `read` makes of it.

    Decoding leaves Python's lock, so threads do; of each source that is being read no more than
    `depth` items wait. An error of `read` is raised by the iterator of its source.

    Args:
        sources: What to read. An iterator must be used up, or dropped, before the next is taken.
        read: Reads one source, in a thread of its own.
        threads: Sources that are read at once; 0 reads in this thread, when items are asked for.
        depth: Items of a source that may wait.
    """
    if threads == 0:
        for source in sources:
            yield read(source)
        return
    ahead: deque[_Reading[Item]] = deque()
    try:
        for source in sources:
            ahead.append(_Reading(lambda source=source: read(source), depth))  # type: ignore[misc]
            if len(ahead) == threads:
                yield iter(ahead[0])
                ahead.popleft().stop()
        while ahead:
            yield iter(ahead[0])
            ahead.popleft().stop()
    finally:
        for reading in ahead:
            reading.stop()


class _Reading(Generic[Item]):
    """A source that a thread reads into a short queue."""

    def __init__(self, read: Callable[[], Iterator[Item]], depth: int) -> None:
        self._queue: Queue[Item | _End] = Queue(depth)
        self._stopped = threading.Event()
        # Where a read hangs, the end of the program does not wait for it.
        self._thread = threading.Thread(target=self._work, args=(read,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                item = self._queue.get(timeout=_WAIT)
            except Empty:
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def stop(self) -> None:
        """Tell the thread that nobody wants the rest."""
        self._stopped.set()
        self._thread.join(_PATIENCE)

    def _work(self, read: Callable[[], Iterator[Item]]) -> None:
        error: Exception | None = None
        try:
            for item in read():
                if not self._put(item):
                    return
        except Exception as problem:  # whatever it is, it belongs to whoever asked
            error = problem
        self._put(_End(error))

    def _put(self, item: Item | _End) -> bool:
        while not self._stopped.is_set():
            with suppress(Full):
                self._queue.put(item, timeout=_WAIT)
                return True
        return False
