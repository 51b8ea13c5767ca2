"""`metrics.jsonl`: one JSON object a line, and the averages between two lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from tatscli.console import without_nan
from tatscli.files import write_safely


class MetricsLog:
    """Appends lines to `metrics.jsonl`; on resuming drops the lines after the checkpoint.

    Args:
        path: The file.
        step: Optimiser steps already done; later lines belong to lost work and are removed.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text("utf-8").splitlines() if _step(line) <= step]
            write_safely(path, "".join(f"{line}\n" for line in kept))

    def write(self, line: Mapping[str, float]) -> None:
        """Append one line; numbers that are not finite become null."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(dict(line))) + "\n")


class Averages:
    """Means of named numbers since the last reading; a number may be missing in some steps."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, float]) -> None:
        """Take one step's numbers, but for those that are not finite."""
        for key, value in values.items():
            if not math.isfinite(value):
                continue
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means


def _step(line: str) -> float:
    # A line cut short by a kill belongs to no step.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
