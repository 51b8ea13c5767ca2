"""Lists of videos: one path a line with an optional label, in the forms data sets come in.

TAB, comma, `::` or blanks between the fields, an optional header, quoted paths, labels as numbers
or names, and `labels.txt` beside the list with the names of the classes. `docs/prepare.md` shows
them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tatscli.errors import DataError
from tatscli.store.annotations.files import AnnotationFile, read_text
from tatscli.store.annotations.formats import AnnotationFormat, AnnotationInput, Annotations, Entry
from tatscli.store.annotations.labels import VideoList, resolve_labels
from tatscli.store.annotations.lines import parse_lines
from tatscli.store.annotations.times import segment_name

_LABELS = "labels.txt"
_STEMS = ("train", "val", "valid", "validation", "test")


def recognise(file: AnnotationFile) -> bool:
    """Whether a file has the name of a list."""
    return file.path.stem in _STEMS and file.suffix in (".csv", ".txt", ".tsv")


def read(inputs: AnnotationInput) -> Annotations:
    """Take the videos that lists name, and no others; those that do not exist will fail.

    Raises:
        DataError: A list is wrong, or none of its videos exists.
    """
    folder = inputs.videos.folder
    lists = [read_list(file.path, file.split or file.path.stem) for file in inputs.files]
    if inputs.companions:
        given = _class_names(inputs.companions[0].path)
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
        findings.append("the lists have no labels: videos are unlabelled")
    return Annotations(entries, class_names, findings, _unused(lists))


def read_list(file: Path, split: str) -> VideoList:
    """Read a list in whatever form it has.

    Raises:
        DataError: The list cannot be read, holds nothing, or has a line that is not a path with or
            without a label.
    """
    lines, form, header = parse_lines(read_text(file), str(file))
    return VideoList(file, split, lines, form, header, _class_names(file.with_name(_LABELS)))


def _unused(lists: list[VideoList]) -> list[str]:
    """Name the columns that are not used."""
    doubts = []
    for item in lists:
        unused = item.header.unused if item.header else []
        if item.header is None or not unused:
            continue
        named, bare = ", ".join(f"`{name}`" for name in unused), "label" not in item.header.columns
        doubts.append(
            f"`{item.file}`: {'columns' if len(unused) > 1 else 'column'} {named} not used"
            + ("; if one of them holds the labels, call it `label`" if bare else "")
        )
    return doubts


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


LIST = AnnotationFormat(
    title="lists of videos",
    files="lists called `train.csv`, `val.txt` and the like",
    read=read,
    recognise=recognise,
    companions=(_LABELS,),
)
