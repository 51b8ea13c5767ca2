"""Kinetics-400, 600 and 700: tables of YouTube ids and times, clips called `<id>_<start>_<end>`."""

from __future__ import annotations

from difflib import get_close_matches

from tatscli.errors import DataError
from tatscli.store.annotations.files import AnnotationFile, files_in, read_table, whole_number
from tatscli.store.annotations.form import Annotated, Entry, Form, Material

_COLUMNS = {"youtube_id", "time_start", "time_end"}
_REPLACEMENT = "replacement_for_corrupted_k400"  # published in place of broken downloads


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is a table with the columns of Kinetics."""
    return file.columns >= _COLUMNS


def read(material: Material) -> Annotated:
    """Read the tables; a class's index is its rank among the labels of the training videos.

    Raises:
        UsageError: A table does not say which split it lists.
        DataError: A row is wrong.
    """
    rows = []
    for file in material.files:
        for where, row in read_table(file.path, *sorted(_COLUMNS)):
            rows.append((where, row, file.split_or(row.get("split", ""))))
    names, doubts = _class_names(material, [(row, split) for _, row, split in rows])
    index = {name: number for number, name in enumerate(names)}
    entries = []
    for where, row, split in rows:
        label = row.get("label", "")
        if label and label not in index:
            near = get_close_matches(label, names, n=1)
            raise DataError(
                f"{where}: no training video has the label `{label}`",
                f"did you mean `{near[0]}`?" if near else "are all tables of the same version?",
            )
        video = row["youtube_id"]
        start, end = (whole_number(row[key], where, key) for key in ("time_start", "time_end"))
        stem = f"{video}_{start:06d}_{end:06d}"
        path = material.videos.named(stem, video, folders=(_REPLACEMENT, label))
        entries.append(Entry(stem, path, where, index.get(label), split))
    return Annotated(entries, names, [f"{len(names)} classes, from the tables"], doubts)


def _class_names(
    material: Material, rows: list[tuple[dict[str, str], str]]
) -> tuple[list[str], list[str]]:
    """Return the sorted labels of the training videos, and doubts."""
    trained = {row["label"] for row, split in rows if split == "train" and row.get("label")}
    if trained:
        return sorted(trained), []
    for folder in dict.fromkeys(file.path.parent for file in material.files):
        for file in files_in(folder, recognise):
            for _, row in read_table(file.path, *sorted(_COLUMNS)):
                if row.get("label") and file.split_or(row.get("split", "")) == "train":
                    trained.add(row["label"])
    if trained:
        return sorted(trained), []
    names = sorted({row["label"] for row, _ in rows if row.get("label")})
    doubt = (
        "there is no table of training videos: classes are numbered among the labels at hand,"
        " which may differ from the usual numbers"
    )
    return names, [doubt] if names else []


KINETICS = Form(
    title="Kinetics",
    files="`train.csv`, `val.csv`, `test.csv` with columns `youtube_id,time_start,time_end`",
    read=read,
    recognise=recognise,
)
