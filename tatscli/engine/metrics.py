"""`metrics.jsonl`: one JSON object a line, and the averages between two lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tatscli.console import Reporter, without_nan
from tatscli.engine import distributed
from tatscli.engine.track import Line, Trackers
from tatscli.files import write_safely
from tatscli.recipe.schema import Run


class MetricsLog:
    """Appends lines to `metrics.jsonl`, and tells trackers the same; on resuming drops the lines
    after the checkpoint.

    Args:
        path: The file.
        step: Optimiser steps already done; later lines belong to lost work and are removed.
        track: Opens the trackers, given the lines that are left.
    """

    def __init__(
        self, path: Path, *, step: int, track: Callable[[list[Line]], Trackers] | None = None
    ) -> None:
        self.path = path
        kept: list[str] = []
        if path.exists():
            # Bytes that are not UTF-8 spoil their line, not the others.
            lines = path.read_bytes().decode(errors="replace").split("\n")
            kept = [line for line in lines if _step(line) <= step]
            write_safely(path, "".join(f"{line}\n" for line in kept))
        self._trackers = track([json.loads(line) for line in kept]) if track else None

    def write(self, line: Mapping[str, float]) -> None:
        """Append one line; numbers that are not finite become null.

        Raises:
            OSError: If it cannot be written; it names the file.
        """
        written = without_nan(dict(line))
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(written) + "\n")
        except OSError as error:  # writing, unlike opening, does not say where
            error.filename = error.filename or str(self.path)
            raise
        if self._trackers is not None:
            self._trackers.numbers(written)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Show a picture, uint8 RGB, to the trackers."""
        if self._trackers is not None:
            self._trackers.picture(step, name, image_HWC)

    def close(self) -> None:
        """Let the trackers finish."""
        if self._trackers is not None:
            self._trackers.close()


@contextmanager
def metrics_log(
    folder: Path | None, run: Run, step: int, about: Line, reporter: Reporter
) -> Iterator[MetricsLog | None]:
    """Open the metrics of a run folder and the trackers of `run.track`.

    Args:
        folder: The run folder; None in a process that writes nothing, which has no log.
        run: The recipe's `run` section.
        step: Optimiser steps already done.
        about: What checkpoints say of the run.
        reporter: Hears of trackers that fail.
    """
    if folder is None:
        yield None
        return
    home = folder

    def track(lines: list[Line]) -> Trackers:
        return Trackers(run.track, home, step, about, lines, reporter=reporter)

    log = MetricsLog(home / "metrics.jsonl", step=step, track=track)
    try:
        yield log
    finally:
        log.close()


class Averages:
    """Means of named numbers since the last reading, over steps and processes; a number may be
    missing in some.

    Tensors stay on their device until `read`, which fetches all of them in one transfer.
    """

    def __init__(self) -> None:
        self._numbers: list[tuple[str, float]] = []
        self._names: list[str] = []
        self._tensors: list[Tensor] = []

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last reading."""
        return not (self._names or self._numbers)

    def mark(self) -> tuple[int, int, int]:
        """Return how far they have come, for `go_back`."""
        return len(self._numbers), len(self._names), len(self._tensors)

    def go_back(self, mark: tuple[int, int, int]) -> None:
        """Forget what was added since a mark."""
        numbers, names, tensors = mark
        del self._numbers[numbers:], self._names[names:], self._tensors[tensors:]

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Take numbers, but for those that are not finite."""
        scalars = {name: one for name, one in values.items() if isinstance(one, Tensor)}
        self._numbers += [
            (name, one) for name, one in values.items() if not isinstance(one, Tensor)
        ]
        if scalars:
            self._names += scalars
            self._tensors.append(torch.stack([one.detach().float() for one in scalars.values()]))

    def read(self) -> dict[str, float]:
        """Return the means and start again; this waits for the device, and for every process."""
        fetched = torch.cat(self._tensors).tolist() if self._tensors else []
        named = [*zip(self._names, fetched, strict=True), *self._numbers]
        for kept in (self._names, self._tensors, self._numbers):
            kept.clear()
        finite: dict[str, list[float]] = {}
        for name, value in named:
            if math.isfinite(value):
                finite.setdefault(name, []).append(value)
        mine = [(name, math.fsum(values), len(values)) for name, values in finite.items()]
        totals: dict[str, tuple[float, int]] = {}
        # By name: a number that is never finite is missing in one process, and there in another.
        for name, value, count in distributed.gathered(mine):
            before, seen = totals.get(name, (0.0, 0))
            totals[name] = before + value, seen + count
        return {name: value / count for name, (value, count) in totals.items()}


def _step(line: str) -> float:
    # A line that is cut short or damaged belongs to no step.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
