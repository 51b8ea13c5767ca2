"""Updates left out because a gradient was not finite: told, and too many in a row refused.

The device knows of them at once, the host when a log line is due; a step later or ten, the weights
are the same.
"""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

from tatscli.console import Reporter
from tatscli.engine.learner import Learner
from tatscli.errors import TatsError
from tatscli.files import write_safely
from tatscli.recipe.schema import Run


class BadSteps:
    """Counts bad steps in a row.

    Args:
        learner: Whose gradients are watched.
        run: The recipe's `run` section.
        folder: Where the batch is named that was one too many.
        rank: Of this process.
    """

    def __init__(self, learner: Learner, run: Run, folder: Path, rank: int) -> None:
        self.learner = learner
        self.run = run
        self.path = folder / f"bad-batch-rank{rank}.json"
        self.in_a_row = 0
        self._rows: deque[list[int]] = deque(maxlen=run.log_every)

    def remember(self, rows: list[int]) -> None:
        """Take the manifest rows of a step's batch."""
        self._rows.append(rows)

    def check(self, done: int, reporter: Reporter) -> None:
        """Look at the steps since the last call, of which `done` are over; this waits.

        Raises:
            TatsError: If `run.max_bad_steps` were bad in a row.
        """
        bad = self.learner.bad_updates()
        first = done - len(bad)
        if any(bad):
            which = ", ".join(str(first + place) for place, one in enumerate(bad) if one)
            reporter.warn(
                f"step {which}: the gradient is not finite, so the weights stay as they are"
            )
        for place, one in enumerate(bad):
            self.in_a_row = self.in_a_row + 1 if one else 0
            if self.in_a_row >= self.run.max_bad_steps:
                self._refuse(first + place, self._rows[place - len(bad)])

    def _refuse(self, step: int, rows: list[int]) -> None:
        facts = {"step": step, "seed": self.run.seed, "rows": rows}
        write_safely(self.path, json.dumps(facts) + "\n")
        raise TatsError(
            f"loss or gradient not finite for {self.in_a_row} steps in a row, "
            f"at step {step}; the manifest rows of the batch are in `{self.path}`",
            hint="lower `optim.base_lr`, set `optim.clip_grad=1`, or try `run.precision=fp32`",
        )
