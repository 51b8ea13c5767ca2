"""Annotation files: where they are found, and reading them with the place of every mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tatscli.errors import DataError, UsageError

_SUBFOLDERS = (
    "annotations",
    "annotation",
    "labels",
    "splits",
    "ucfTrainTestlist",
    "testTrainMulti_7030_splits",
    "epic-kitchens-100-annotations",
)
_CANDIDATE = re.compile(r".*(train|val|test).*\.(json|csv|txt|tsv)", re.IGNORECASE)
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val"}
_ORDER = ("train", "val", "test", "")
_HEAD = 8192  # bytes that tell the form of a file


@dataclass(frozen=True)
class AnnotationFile:
    """A file of annotations.

    Attributes:
        path: Where it is.
        split: The part of the data that the user says it lists.
        given: Whether the user named the file itself, not only a folder that holds it.
    """

    path: Path
    split: str | None = None
    given: bool = False

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @cached_property
    def head(self) -> str:
        """The beginning of its text."""
        with self.path.open("rb") as file:
            return file.read(_HEAD).decode("utf-8", "replace").removeprefix("\ufeff")

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names in its first line, if it is a table separated by commas."""
        if self.suffix != ".csv":
            return frozenset()
        line = self.head.partition("\n")[0]
        return frozenset(name.strip().strip('"').lower() for name in line.split(","))

    def split_or(self, written: str = "") -> str:
        """Return the split that the user gave, else the one written, else the file name's.

        Raises:
            UsageError: None of them says it.
        """
        if self.split:
            return self.split
        if written:
            return _SPLITS.get(written.lower(), written)
        split = _split_in(self.path.stem)
        if not split:
            raise UsageError(
                f"the name of `{self.path}` does not tell its split",
                f"give `--annotations SPLIT={self.path}`",
            )
        return split


def _split_in(name: str) -> str:
    """Return the split that a file's name says; "" if it says none."""
    found = re.search("|".join(_ORDER[:-1]), name, re.IGNORECASE)
    return found[0].lower() if found else ""


def named_files(
    annotations: Sequence[str], folder: Path
) -> tuple[list[AnnotationFile], list[Path]]:
    """Read `FILE`, `SPLIT=FILE` or `FOLDER` each; what is not here may be in the prepared folder.

    Raises:
        UsageError: There is no such file or folder.
    """
    files, folders = [], []
    for annotation in annotations:
        split, equals, name = annotation.partition("=")
        if not equals or os.path.exists(annotation):
            split, name = "", annotation
        path = next((path for path in (Path(name), folder / name) if os.path.exists(path)), None)
        if path is None:
            raise UsageError(
                f"there is no list `{name}`",
                "give `--annotations FILE`, `SPLIT=FILE`, or a folder of annotation files",
            )
        if path.is_file():
            files.append(AnnotationFile(path, split or None, given=True))
        elif split:
            raise UsageError(f"`{name}` is a folder, not a list of the split `{split}`")
        else:
            folders.append(path)
    return files, folders


def places(folder: Path) -> list[Path]:
    """Return a folder, and those of its sub-folders that are called like ones for annotations."""
    return [folder, *(folder / name for name in _SUBFOLDERS if (folder / name).is_dir())]


def places_around(folder: Path) -> list[Path]:
    """Return where the annotations of a folder of videos may be, nearest first."""
    parent = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    return [*places(folder), *places(parent)]


def files_in(folder: Path, wanted: Callable[[AnnotationFile], bool]) -> list[AnnotationFile]:
    """Return the annotation files of one form that lie in a folder: train, val, test, by name."""
    try:
        names = [name for name in os.listdir(folder) if _CANDIDATE.fullmatch(name)]
        names.sort(key=lambda name: (_ORDER.index(_split_in(Path(name).stem)), name))
        found = [AnnotationFile(folder / name) for name in names if (folder / name).is_file()]
        return [file for file in found if wanted(file)]
    except OSError:  # what cannot be looked at holds nothing for us
        return []


def read_text(file: Path) -> str:
    """Read a text file.

    Raises:
        DataError: It cannot be read, is not UTF-8, or holds a NUL byte.
    """
    try:
        data = file.read_bytes()
        text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig").read()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"`{file}`, line {line}: not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"the list `{file}` cannot be read: {error.strerror}") from error
    if "\0" in text:  # UTF-16 without a mark, or damage; no path can hold one
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"`{file}`, line {line}: a NUL byte", "save the file as UTF-8 text")
    return text


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line is, and the line; without empty ones."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip():
            yield f"`{file}`, line {number}", line.strip()


def read_json(file: Path, kind: type) -> Any:
    """Read a JSON file whose content must be of a kind: `list` or `dict`.

    Raises:
        DataError: It is not JSON, or of another kind.
    """
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(
            f"`{file}`, line {error.lineno}: not JSON: {error.msg}", "is the file complete?"
        ) from None
    except (ValueError, RecursionError) as error:  # numbers too long, arrays too deep
        raise DataError(f"`{file}` cannot be read: {error}") from None
    if not isinstance(content, kind):
        due = "an array" if kind is list else "an object"
        raise DataError(f"`{file}` does not hold {due}")
    return content


def read_items(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each item of a JSON array of objects is, counted from 0, and the item.

    Raises:
        DataError: It is no array of objects.
    """
    for number, item in enumerate(read_json(file, list)):
        where = f"`{file}`, item {number}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: `{item}` is not an object")
        yield where, item


def read_table(file: Path, *columns: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row of a comma-separated table with a header is, and the row.

    Args:
        file: The table.
        columns: Those that every row must fill.

    Raises:
        DataError: A row is no row, or lacks something.
    """
    reader = csv.reader(io.StringIO(read_text(file)), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if header is None:
                header = [name.strip().lower() for name in fields]
                continue
            if not any(field.strip() for field in fields):
                continue
            where = f"`{file}`, line {reader.line_num}"
            row = {name: field.strip() for name, field in zip(header, fields, strict=False)}
            for column in columns:
                if not row.get(column):
                    raise DataError(f"{where}: no `{column}`: `{','.join(fields)}`")
            yield where, row
    except csv.Error as error:
        raise DataError(f"`{file}`, line {reader.line_num}: {error}") from None


def whole_number(value: object, where: str, name: str) -> int:
    """Return a number of an annotation, which may be written as text.

    Raises:
        DataError: It is not a whole number from 0.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,15}(\.0*)?", text, re.ASCII):
        raise DataError(f"{where}: {name} `{value}` is not a whole number from 0")
    return int(text.partition(".")[0])
