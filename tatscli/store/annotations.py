"""Reading lists of videos: one path a line with an optional label, in the forms data sets come in.

TAB, comma or blanks between the fields, an optional header, quoted paths, labels as numbers or
names, and `labels.txt` beside the list with the names of the classes. `docs/prepare.md` shows them.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from tatscli.errors import DataError

_SUFFIXES = """
    .264 .265 .3g2 .3gp .amv .apng .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf
    .m1v .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mov .mp2v .mp4 .mpe .mpeg .mpg .mts .mxf .nut .obu
    .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .y4m
"""
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
"""What a video file is called, in any letter case."""

_FORMS = {"TAB": "\t", "comma": ",", "blanks": ""}  # equally good ones are preferred in this order
_PATH_COLUMNS = ("path", "file", "file_name", "filename", "video", "video_path", "clip")
_LABEL_COLUMNS = ("label", "label_id", "label_name", "class", "class_id", "class_name", "category")
_HINT = "a good line is `clips/jump 01.mp4,3` or `clips/jump01.mp4 3`, or the path alone"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list.

    Attributes:
        path: As written, without quotes.
        label: As written; None where the line has none.
        where: File and line, for messages.
    """

    path: str
    label: str | None
    where: str


@dataclass(frozen=True, slots=True)
class VideoList:
    """A list of videos.

    Attributes:
        file: Where it was read.
        split: Name of the part of the data that it lists.
        entries: Its lines.
        form: The form that was recognised, in words.
        class_names: Of `labels.txt` beside it; None if there is none.
    """

    file: Path
    split: str
    entries: list[Entry]
    form: str
    class_names: list[str] | None


def has_video_suffix(path: str) -> bool:
    """Whether a path is called like a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def read_list(file: Path, split: str) -> VideoList:
    """Read a list in whatever form it has.

    Raises:
        DataError: The list cannot be read, holds nothing, or has a line that is not a path with or
            without a label.
    """
    lines = [(n, text) for n, text in enumerate(_text(file).splitlines(), 1) if text.strip()]
    form = max(_FORMS, key=lambda form: _score([text for _, text in lines], form))
    columns = _header(_fields(lines[0][1], form)) if lines else None
    if columns is not None:
        lines = lines[1:]
    if not lines:
        raise DataError(f"the list `{file}` names no video", _HINT)
    entries = [_entry(f"`{file}`, line {n}", text, form, columns) for n, text in lines]
    labelled = any(entry.label is not None for entry in entries)
    described = f"fields separated by {form}" if labelled else "paths without labels"
    if columns is not None:
        described += ", with a header"
    return VideoList(file, split, entries, described, _class_names(file.with_name("labels.txt")))


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
    written: dict[str, Entry] = {}
    for item in lists:
        for entry in item.entries:
            if entry.label is not None and entry.label != "-1":
                written.setdefault(entry.label, entry)
    numbers = {label for label in written if label.isdecimal()}
    if named:
        names = named[0].class_names or []
    elif len(numbers) == len(written):
        largest = max(written, key=int, default="-1")
        entries = sum(len(item.entries) for item in lists)
        if int(largest) > max(1000, 10 * entries):
            raise DataError(
                f"{written[largest].where}: label `{largest}` would make "
                f"{int(largest) + 1} classes of {entries} videos",
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
    return names, {label: _class_index(label, entry, names) for label, entry in written.items()}


def _class_index(label: str, entry: Entry, names: list[str]) -> int:
    if label.isdecimal():
        if int(label) < len(names):
            return int(label)
        raise DataError(
            f"{entry.where}: label `{label}` is too large: `labels.txt` names {len(names)} classes",
            "labels count from 0",
        )
    if label in names:
        return names.index(label)
    near = get_close_matches(label, names, n=1)
    raise DataError(
        f"{entry.where}: class `{label}` is not in `labels.txt`",
        f"did you mean `{near[0]}`?" if near else None,
    )


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"`{file}`, line {line}: not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"the list `{file}` cannot be read: {error.strerror}") from error


def _score(lines: list[str], form: str) -> tuple[int, int]:
    """Count the lines whose path looks like a video in this form, then those with two fields."""
    split = [_fields(text, form) for text in lines[:1000]]
    path, _ = (_header(split[0]) if split else None) or (0, 1)
    named = sum(len(fields) > path and has_video_suffix(fields[path]) for fields in split)
    return named, sum(len(fields) > 1 for fields in split)


def _fields(text: str, form: str) -> list[str]:
    """Split a line; a quote that stays open gives no field at all."""
    text = text.strip()
    if form == "blanks":
        return _fields_by_blanks(text)
    try:
        rows = list(csv.reader([text], delimiter=_FORMS[form], skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    return [field.strip() for field in rows[0]]


def _fields_by_blanks(text: str) -> list[str]:
    """Split at blanks; a path may hold some if it is quoted or ends in the suffix of a video."""
    if text[0] in "\"'":
        quoted = re.fullmatch(r"(['\"])(?P<path>.*?)\1(?:\s+(?P<rest>.*))?", text)
        if quoted is None:
            return []
        return [quoted["path"], *([quoted["rest"]] if quoted["rest"] else [])]
    ends = [found.start() for found in re.finditer(r"\s+", text)]
    for end in [*ends, len(text)]:
        if has_video_suffix(text[:end]):
            rest = text[end:].strip()
            return [text[:end], *([rest] if rest else [])]
    return text.rsplit(None, 1)


def _header(fields: list[str]) -> tuple[int, int | None] | None:
    """Return the columns of path and label if these fields are a header."""
    names = [field.lower() for field in fields]
    paths = [index for index, name in enumerate(names) if name in _PATH_COLUMNS]
    if not paths:
        return None
    labels = [index for index, name in enumerate(names) if name in _LABEL_COLUMNS]
    return paths[0], labels[0] if labels else None


def _entry(where: str, text: str, form: str, columns: tuple[int, int | None] | None) -> Entry:
    fields = _fields(text, form)
    if (form != "blanks" and fields[1:] == ["0", "-1"]) or fields[1:] == ["0 -1"]:
        fields = fields[:1]  # VideoMAE V2's way to list a video for pretraining
    path, label = columns or (0, 1)
    if not fields:
        raise DataError(f"{where}: a quote is not closed: `{text}`", _HINT)
    if columns is None and (len(fields) > 2 or re.fullmatch(r"-?\d+(\s+-?\d+)+", fields[-1])):
        raise DataError(
            f"{where}: more than a path and a label: `{text}`",
            f"{_HINT}; a header such as `path,label,start` names further columns",
        )
    if len(fields) <= path or not fields[path]:
        raise DataError(f"{where}: no path: `{text}`", _HINT)
    written = fields[label] if label is not None and len(fields) > label else ""
    return Entry(fields[path], written or None, where)


def _class_names(file: Path) -> list[str] | None:
    if not file.is_file():
        return None
    names = [line.strip() for line in _text(file).splitlines() if line.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"`{file}` names the class `{twice}` twice")
    return names
