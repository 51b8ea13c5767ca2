"""When to stop: before every micro-batch ranks agree whether any of them was told to stop, and
whether all have a batch, so that none waits in a collective that another one never joins."""

from __future__ import annotations

import time
from typing import Any

from tatscli.engine import distributed
from tatscli.engine.feed import Feed
from tatscli.engine.halfway import Halfway
from tatscli.engine.signals import StopRequest
from tatscli.errors import DataError

ROUND = 1.0
"""Seconds that a rank waits for its loader before it tells the others that it is still waiting."""


class Leaving:
    """Takes micro-batches on all ranks, or on none.

    Between two steps a signal takes effect at once. A step that has begun continues while batches
    arrive, for `PATIENCE` seconds; then it is dropped, and the state before it counts.

    Args:
        feed: The source of batches.
        request: Signals to this rank.
        halfway: Keeps the state at the start of the step.
    """

    def __init__(self, feed: Feed, request: StopRequest, halfway: Halfway) -> None:
        self._feed = feed
        self._request = request
        self._halfway = halfway
        self.amid = False
        """Whether a step was dropped."""

    def take(self, part: int) -> Any | None:
        """Return the next micro-batch; None on every rank when it is time to stop.

        Args:
            part: Number of the micro-batch within its step.

        Raises:
            DataError: If the loader fails.
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
