"""Selecting, reordering and naming the classes of a classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.errors import UsageError
from tatscli.store.schema import ClassGroup

_HEAD = ("head.weight", "head.bias")


def read_class_map(path: Path) -> tuple[list[int], list[str] | None]:
    """Read which rows of a classifier become which classes, and the class names if there are any.

    A JSON list gives the row of each class, in order, as VideoMAE V2's `label_710to400.json` does;
    an object gives it by class number or by class name.

    Raises:
        UsageError: If it is neither.
    """
    found = _json(path)
    if isinstance(found, list) and all(type(row) is int for row in found):
        return found, None
    if isinstance(found, dict) and all(type(row) is int for row in found.values()):
        if all(key.isdecimal() for key in found):
            numbers = sorted(found, key=int)
            if [int(key) for key in numbers] == list(range(len(found))):
                return [found[key] for key in numbers], None
            raise UsageError(f"the classes in `--classes {path}` are not numbered 0, 1, 2, ...")
        return list(found.values()), list(found)
    raise UsageError(
        f"`--classes {path}` is neither a list of row numbers nor an object with them",
        hint='such as `[12, 3, 40]`, or `{"archery": 12, "bowling": 3}`',
    )


def read_class_names(path: Path) -> list[str]:
    """Read class names: one a line, a JSON list, or a JSON object by number as in `id2label`.

    Raises:
        UsageError: If there are none, one is empty or two are the same.
    """
    if path.suffix == ".json":
        found = _json(path)
        if isinstance(found, dict) and all(key.isdecimal() for key in found):
            found = [found[key] for key in sorted(found, key=int)]
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise UsageError(f"`--class-names {path}` is not a list of names")
        names = found
    else:
        names = [line.strip() for line in _text(path).splitlines()]
        while names and not names[-1]:
            names.pop()
    if not names or not all(names):
        empty = names.index("") + 1 if names else 1
        raise UsageError(f"`--class-names {path}`: class {empty} has no name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"`--class-names {path}` has `{twice}` twice")
    return names


def selected(
    tensors: Mapping[str, Tensor],
    labels: list[str],
    groups: Mapping[str, ClassGroup],
    rows: list[int],
    *,
    called: str,
) -> tuple[dict[str, Tensor], list[str], dict[str, ClassGroup]]:
    """Keep some classes of a classifier, in the order of `rows`.

    With a head for each group of classes the heads are not changed, since class scores are computed
    from the members' scores.

    Args:
        tensors: The classifier.
        labels: Its class names.
        groups: The groups that classes are combinations of, if any.
        rows: Numbers of the classes to keep.
        called: Name of the map in messages.

    Returns:
        The classifier, the names, and the groups of the classes that are left.

    Raises:
        UsageError: If the classifier has no such row, or one is named twice.
    """
    classes = len(labels)
    for row in rows:
        if not 0 <= row < classes:
            raise UsageError(
                f"`--classes {called}` has row {row}; the classifier has rows 0 to {classes - 1}"
            )
    if len(set(rows)) < len(rows) or not rows:
        raise UsageError(f"`--classes {called}` is empty or has a row twice")
    index = torch.tensor(rows)
    changed = {name: tensors[name][index] for name in _HEAD if name in tensors}
    left = {
        name: group.model_copy(update={"of": tuple(group.of[row] for row in rows)})
        for name, group in groups.items()
    }
    return {**tensors, **changed}, [labels[row] for row in rows], left


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`{path}` is not valid JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is not UTF-8 text: {error.reason}") from error
