"""JSON files read back, whatever became of them: one line that names the file and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tatscli.errors import DataError

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a damaged or foreign file raises, one that is not there included."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: If it is not there.
        DataError: If it cannot be read, or is not JSON in UTF-8.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise DataError(f"`{path}` cannot be read: {reason_of(error)}") from error


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file.

    Raises:
        DataError: If the file cannot be read, or holds something else.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(found, dict):
        raise DataError(f"`{path}` is not a JSON object but {_kind(found)}")
    return found


def reason_of(error: BaseException) -> str:
    """Say in one line what an error of reading means."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"`{place}`: {first['msg']}" if place else first["msg"]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"it has no `{error.args[0]}`"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _kind(found: Any) -> str:
    names = {list: "a list", str: "text", bool: "`true` or `false`", type(None): "`null`"}
    return names.get(type(found), "a number")
