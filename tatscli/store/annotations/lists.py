"""Lists of videos: one path a line with an optional label, in the forms data sets come in.

TAB, comma, `::` or blanks between the fields, an optional header, quoted paths, labels as numbers
or names, and `labels.txt` beside the list with the names of the classes. `docs/prepare.md` shows
them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from tatscli.errors import DataError
from tatscli.store.annotations.files import AnnotationFile, read_text
from tatscli.store.annotations.form import Annotated, Entry, Form, Material
from tatscli.store.annotations.lines import Line, parse_lines
from tatscli.store.annotations.times import segment_name

_LABELS = "labels.txt"
_STEMS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class VideoList:
    """A list of videos.

    Attributes:
        file: Where it was read.
        split: Name of the part of the data that it lists.
        lines: What it says.
        form: The form that was recognised, in words.
        class_names: Of `labels.txt` beside it; None if there is none.
    """

    file: Path
    split: str
    lines: list[Line]
    form: str
    class_names: list[str] | None


def recognise(file: AnnotationFile) -> bool:
    """Whether a file of a folder is called like a list."""
    return file.path.stem in _STEMS and file.suffix in (".csv", ".txt", ".tsv")


def read(material: Material) -> Annotated:
    """Take what lists name, and nothing else; what does not exist is taken too, and will fail.

    Raises:
        DataError: A list is wrong, or nothing that it names exists.
    """
    folder = material.videos.folder
    lists = [read_list(file.path, file.split or file.path.stem) for file in material.files]
    if material.companions:
        given = _class_names(material.companions[0].path)
        lists = [replace(item, class_names=given) for item in lists]
    class_names, index = resolve_labels(lists)
    entries = [
        Entry(
            video=line.path,
            path=_locate(line.path, folder, item.file.parent),
            where=line.where,
            label=index.get(line.label) if line.label else None,
            split=item.split,
            segment=line.segment,
            name=line.name or (segment_name(line.segment) if line.segment else None),
        )
        for item in lists
        for line in item.lines
    ]
    if not any(os.path.exists(entry.path) for entry in entries if entry.path):
        raise DataError(
            f"none of the {len(entries)} listed videos exists, such as `{entries[0].path}`",
            f"paths in a list are relative to `{folder}` or to the folder of the list",
        )
    findings = [
        f"`{item.file}`: {len(item.lines)} video{'' if len(item.lines) == 1 else 's'}"
        f" in split `{item.split}`, {item.form}"
        for item in lists
    ]
    if class_names:
        named_by = "`labels.txt`" if any(item.class_names for item in lists) else "the lists"
        findings.append(f"{len(class_names)} classes, named by {named_by}")
    else:
        findings.append("the lists hold no labels: videos are unlabelled")
    return Annotated(entries, class_names, findings)


def read_list(file: Path, split: str) -> VideoList:
    """Read a list in whatever form it has.

    Raises:
        DataError: The list cannot be read, holds nothing, or has a line that is not a path with or
            without a label.
    """
    lines, form = parse_lines(read_text(file), str(file))
    return VideoList(file, split, lines, form, _class_names(file.with_name(_LABELS)))


def resolve_labels(lists: list[VideoList]) -> tuple[list[str], dict[str, int]]:
    """Find out what the labels of some lists mean together.

    Numbers are indices, from 0. Names are looked up in `labels.txt`, or sorted where there is none.

    Returns:
        The class names, and the index of every label as it is written; `-1` has none.

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
    written: dict[str, Line] = {}
    for item in lists:
        for line in item.lines:
            if line.label is not None and line.label != "-1":
                written.setdefault(line.label, line)
    numbers = {label for label in written if _is_number(label)}
    if named:
        names = named[0].class_names or []
    elif len(numbers) == len(written):
        largest = max(written, key=int, default="-1")
        videos = sum(len(item.lines) for item in lists)
        if int(largest) > max(1000, 10 * videos):
            raise DataError(
                f"{written[largest].where}: label `{largest}` would make "
                f"{int(largest) + 1} classes of {videos} videos",
                "the second field must be a class, counted from 0; is it a time or a frame count?",
            )
        names = [str(index) for index in range(int(largest) + 1)]
    elif numbers:
        label = next(label for label in written if label in numbers)
        raise DataError(
            f"{written[label].where}: label `{label}` is a number, but other labels are names",
            "put a `labels.txt` with one class name a line beside the list",
        )
    else:
        names = sorted(written)
    return names, {label: _class_index(label, line, names) for label, line in written.items()}


def _is_number(label: str) -> bool:
    return label.isdecimal() and len(label) < 16


def _class_index(label: str, line: Line, names: list[str]) -> int:
    if _is_number(label):
        if int(label) < len(names):
            return int(label)
        raise DataError(
            f"{line.where}: label `{label}` is too large: `labels.txt` names {len(names)} classes",
            "labels count from 0",
        )
    if label in names:
        return names.index(label)
    near = get_close_matches(label, names, n=1)
    raise DataError(
        f"{line.where}: class `{label}` is not in `labels.txt`",
        f"did you mean `{near[0]}`?" if near else None,
    )


def _class_names(file: Path) -> list[str] | None:
    if not file.is_file():
        return None
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"`{file}` names the class `{twice}` twice")
    return names


def _locate(written: str, folder: Path, beside: Path) -> Path:
    """Return where a listed file is: relative to the prepared folder, else to its list."""
    inside, near = (Path(os.path.normpath(base / written)) for base in (folder, beside))
    return near if not os.path.exists(inside) and os.path.exists(near) else inside


LIST = Form(
    title="lists of videos",
    files="lists called `train.csv`, `val.txt` and the like",
    read=read,
    recognise=recognise,
    companions=(_LABELS,),
)
