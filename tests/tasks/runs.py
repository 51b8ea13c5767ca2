"""What a run left on disk, and whether two runs left the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.engine.checkpoint import find_checkpoint


def metrics(run: Path | str) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics."""
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path | str, part: str = "model") -> dict[str, Tensor]:
    """Read a part of a run's last checkpoint."""
    return find_checkpoint(Path(run)).tensors(part)


def assert_equal(one: Path | str, two: Path | str, *parts: str) -> None:
    """Compare parts of two runs, bit by bit."""
    for part in parts:
        first, second = weights(one, part), weights(two, part)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[name]) for name, value in first.items()), part
