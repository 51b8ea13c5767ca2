"""Kinetics-400, 600 and 700: tables of YouTube ids and times, clips called `<id>_<start>_<end>`."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from sys import intern
from typing import NamedTuple

from tatscli.errors import DataError
from tatscli.store.annotations.files import AnnotationFile, files_in, read_table, whole_number
from tatscli.store.annotations.formats import AnnotationFormat, AnnotationInput, Annotations, Entry

_COLUMNS = {"youtube_id", "time_start", "time_end"}
_REPLACEMENT = "replacement_for_corrupted_k400"  # published in place of broken downloads


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is a table with the columns of Kinetics."""
    return file.columns >= _COLUMNS


def read(inputs: AnnotationInput) -> Annotations:
    """Read the tables; a class's index is its rank among the labels of the training videos.

    Raises:
        UsageError: A table does not say which split it lists.
        DataError: A row is wrong.
    """
    rows = [row for file in inputs.files for row in _rows(file)]
    names, doubts = _class_names(inputs, rows)
    index = {name: number for number, name in enumerate(names)}
    entries = []
    for row in rows:
        if row.label and row.label not in index:
            near = get_close_matches(row.label, names, n=1)
            raise DataError(
                f"{row.where}: no training video has the label `{row.label}`",
                f"did you mean `{near[0]}`?" if near else "are all tables of the same version?",
            )
        stem = f"{row.video}_{row.start:06d}_{row.end:06d}"
        path = inputs.videos.named(stem, row.video, folders=(_REPLACEMENT, row.label))
        entries.append(Entry(stem, path, row.where, index.get(row.label), row.split))
    return Annotations(entries, names, [f"{len(names)} classes, from the tables"], doubts)


class _Row(NamedTuple):
    where: str
    label: str
    video: str
    start: int
    end: int
    split: str


def _rows(file: AnnotationFile) -> Iterator[_Row]:
    for where, row in read_table(file.path, *sorted(_COLUMNS)):
        start, end = (whole_number(row[key], where, key) for key in ("time_start", "time_end"))
        label, split = intern(row.get("label", "")), intern(file.split_or(row.get("split", "")))
        yield _Row(where, label, row["youtube_id"], start, end, split)


def _class_names(inputs: AnnotationInput, rows: list[_Row]) -> tuple[list[str], list[str]]:
    """Return the sorted labels of the training videos, and doubts."""
    trained = {row.label for row in rows if row.split == "train" and row.label}
    if not trained:
        folders = dict.fromkeys(file.path.parent for file in inputs.files)
        beside = [file for folder in folders for file in files_in(folder, recognise)]
        others = (row for file in beside for row in _rows(file))
        trained = {row.label for row in others if row.split == "train" and row.label}
    if trained:
        return sorted(trained), []
    names = sorted({row.label for row in rows if row.label})
    doubt = (
        "there is no table of training videos: classes are numbered among the labels at hand,"
        " which may differ from the usual numbers"
    )
    return names, [doubt] if names else []


KINETICS = AnnotationFormat(
    title="Kinetics",
    files="`train.csv`, `val.csv`, `test.csv` with columns `youtube_id,time_start,time_end`",
    read=read,
    recognise=recognise,
)
