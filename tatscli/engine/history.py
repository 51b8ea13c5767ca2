"""The numbers that a training has logged, read without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_metrics(path: Path, *, tail: int | None = None) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`, without those that a kill cut short or damage spoiled.

    Args:
        path: The file; where there is none, there are no lines.
        tail: Read this many bytes at the end alone.
    """
    try:
        with path.open("rb") as file:
            if tail is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - tail))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and type(value.get("step")) in (int, float):
            found.append(value)
    return found
