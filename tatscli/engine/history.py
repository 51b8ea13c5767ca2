"""What a run folder tells of itself, read without torch: `run.json` and `metrics.jsonl`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tatscli.errors import DataError


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file.

    Raises:
        DataError: If the file cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"`{path.name}` cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"`{path.name}` is not an object")
    return found


def read_metrics(path: Path, *, tail: int | None = None) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`, without those that a kill cut short.

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
        except ValueError:
            continue
        if isinstance(value, dict) and "step" in value:
            found.append(value)
    return found
