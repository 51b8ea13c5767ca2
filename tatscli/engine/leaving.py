"""When to leave: ranks agree before every micro-batch whether somebody was told to stop, and
whether everybody has a batch, so that none waits in a computation that another will never join."""

from __future__ import annotations

import time
from typing import Any

from tatscli.engine import distributed
from tatscli.engine.feed import Feed
from tatscli.engine.halfway import Halfway
from tatscli.engine.signals import StopRequest
from tatscli.errors import DataError

ROUND = 1.0
"""Seconds that a rank waits for its loader before it tells the others that it still does."""


class Leaving:
    """Takes micro-batches for all ranks alike, or for none.

    Between two steps a signal is followed at once. A step that has begun goes on while batches
    come, for `PATIENCE` seconds; then it is given up, and what stands is the step before it.

    Args:
        feed: Where batches come from.
        request: What this rank was told.
        halfway: Remembers where the training stood as the step began.
    """

    def __init__(self, feed: Feed, request: StopRequest, halfway: Halfway) -> None:
        self._feed = feed
        self._request = request
        self._halfway = halfway
        self.amid = False
        """Whether a step was given up."""

    def take(self, part: int) -> Any | None:
        """Return the next micro-batch; None on every rank where it is time to leave.

        Args:
            part: Number of the micro-batch within its step.

        Raises:
            DataError: If the loader has to give up.
        """
        request = self._request
        if part:
            self._halfway.look()
        else:
            self._halfway.begin()
        batch: Any | None = None
        lost = False
        while True:
            until = time.monotonic() + ROUND

            def enough(until: float = until) -> bool:
                return time.monotonic() >= until or (not part and bool(request.exit_code))

            if batch is None and not lost:
                try:
                    batch = self._feed.take(enough)
                except DataError:
                    # A signal to the whole job ends the loader's workers too.
                    if not request.exit_code:
                        raise
                    lost = True
            missing, code, late = distributed.agreed(
                [batch is None, request.exit_code, lost or request.overdue]
            )
            request.tell(int(code))
            if code and (not part or late):
                self.amid = part > 0
                return None
            if not missing:
                return batch
