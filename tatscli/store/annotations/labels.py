"""What the labels of lists mean: numbers of classes, or their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tatscli.errors import DataError
from tatscli.store.annotations.lines import Header, Line

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)
_LARGEST = 10**9
_MISSING = {"nan", "<na>"}
"""How pandas writes a label that is not there."""
_MISSING_NUMBERS = _MISSING | {"none", "null", "na", "n/a"}
"""What stands for no label among numbers, where it cannot be the name of a class."""


@dataclass(frozen=True, slots=True)
class VideoList:
    """A list of videos.

    Attributes:
        file: Where it was read.
        split: Name of the part of the data that it lists.
        lines: What it says.
        form: The form that was recognised, in words.
        header: The names of its columns; None if it has none.
        class_names: Of `labels.txt` beside it; None if there is none.
    """

    file: Path
    split: str
    lines: list[Line]
    form: str
    header: Header | None
    class_names: list[str] | None


def resolve_labels(lists: Sequence[VideoList]) -> tuple[list[str], dict[str, int]]:
    """Find out what the labels of some lists mean together.

    Numbers are indices, from 0, and may be written as floats. Names are looked up in `labels.txt`,
    or sorted where there is none.

    Returns:
        The class names, and the index of every label as it is written, without those that mean
        that there is none: -1, and what pandas writes for a missing value.

    Raises:
        DataError: A label is unknown or out of range, numbers are mixed with names, or two
            `labels.txt` differ.
    """
    named = [item for item in lists if item.class_names is not None]
    for item in named[1:]:
        if item.class_names != named[0].class_names:
            raise DataError(
                f"`labels.txt` beside `{item.file}` and beside `{named[0].file}`"
                " name different classes"
            )
    known = named[0].class_names if named else None
    written: dict[str, Line] = {}
    for item in lists:
        for line in item.lines:
            if line.label is not None:
                written.setdefault(line.label, line)
    numbers = {label: _NUMBER.fullmatch(label) is not None for label in written}
    missing = _missing(written, numbers, known or [])
    indices = {
        label: _index(label, line)
        for label, line in written.items()
        if numbers[label] and label not in missing and label not in (known or [])
    }
    labels = {label: line for label, line in written.items() if label not in missing}
    if known is not None:
        for label, index in indices.items():
            if index >= len(known):
                raise DataError(
                    f"{written[label].where}: label `{label}` is too large: `labels.txt` names"
                    f" {len(known)} classes",
                    "labels count from 0",
                )
        return known, indices | {
            label: _named(label, line, known)
            for label, line in labels.items()
            if label not in indices
        }
    if len(indices) == len(labels):
        videos = sum(len(item.lines) for item in lists)
        return _counted(indices, written, videos), indices
    if indices:
        label = next(label for label in labels if label in indices)
        raise DataError(
            f"{written[label].where}: label `{label}` is a number, but other labels are names",
            "put a `labels.txt` with one class name a line beside the list",
        )
    names = sorted(labels)
    return names, {name: index for index, name in enumerate(names)}


def _missing(written: dict[str, Line], numbers: dict[str, bool], known: Sequence[str]) -> set[str]:
    """Return the labels that stand for none."""
    words = {label for label, number in numbers.items() if not number and label not in known}
    among_numbers = any(numbers.values()) and {word.lower() for word in words} <= _MISSING_NUMBERS
    some = _MISSING_NUMBERS if among_numbers else _MISSING
    missing = {word for word in words if word.lower() in some}
    return missing | {label for label in written if numbers[label] and float(label) == -1}


def _index(label: str, line: Line) -> int:
    """Return the class that a number means."""
    value = float(label)
    if not 0 <= value < _LARGEST or value != int(value):
        raise DataError(
            f"{line.where}: label `{label}` is not a class number",
            "classes are whole numbers from 0, and -1 is no label; does another column hold them?",
        )
    return int(value)


def _counted(indices: dict[str, int], written: dict[str, Line], videos: int) -> list[str]:
    """Return the numbers as names of the classes, up to the largest."""
    label = max(indices, key=lambda one: indices[one], default=None)
    if label is None:
        return []
    if indices[label] > max(1000, 10 * videos):
        raise DataError(
            f"{written[label].where}: label `{label}` would make {indices[label] + 1} classes of"
            f" {videos} videos",
            "the label must be a class, counted from 0; is it a time or a frame count?",
        )
    return [str(index) for index in range(indices[label] + 1)]


def _named(label: str, line: Line, names: list[str]) -> int:
    if label in names:
        return names.index(label)
    near = get_close_matches(label, names, n=1)
    raise DataError(
        f"{line.where}: class `{label}` is not in `labels.txt`",
        f"did you mean `{near[0]}`?" if near else None,
    )
