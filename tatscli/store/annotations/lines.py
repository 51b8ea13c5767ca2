"""The lines of a list: finding out how their fields are separated, and reading them."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

from tatscli.errors import DataError
from tatscli.store.annotations.times import read_segment
from tatscli.store.annotations.videos import has_video_suffix
from tatscli.video.decode import Segment

# equally good ones are preferred in this order
_FORMS = {"TAB": "\t", "comma": ",", "`::`": "::", "blanks": ""}
_KINDS = {
    "path": "path file filename filepath video videopath videofile videoname clip clippath"
    " clipname",
    "label": "label labelid labelname class classid classname classlabel classindex category"
    " categoryid categoryname target",
    "start": "start starttime startseconds startsec startstamp starttimestamp timestart",
    "end": "end endtime endseconds endsec endtimestamp timeend stop stoptime stopseconds"
    " stoptimestamp",
    "name": "name segment segmentid segmentname",
}
_COLUMNS = {name: kind for kind, names in _KINDS.items() for name in names.split()}
"""What columns may be called, without regard to case, blanks, `_` and `-`."""
_HINT = "a good line is `clips/jump 01.mp4,3` or `clips/jump01.mp4 3`, or the path alone"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a list.

    Attributes:
        path: As written, without quotes.
        label: As written; None where the line has none.
        where: File and line, for messages.
        segment: The part of the video that is meant; None is all of it.
        name: Of the segment; None where the line has none.
    """

    path: str
    label: str | None
    where: str
    segment: Segment | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a list, if it names columns.

    Attributes:
        columns: What each is for; "" for those that are of no use here.
        unused: The names of the latter.
    """

    columns: list[str]
    unused: list[str]


def parse_lines(text: str, file: str) -> tuple[list[Line], str, Header | None]:
    """Read the text of a list in whatever form it has.

    Returns:
        The lines, the form that was recognised, in words, and the header.

    Raises:
        DataError: It names no video, or a line is not a path with or without a label.
    """
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    form = max(_FORMS, key=lambda form: _score([line for _, line in lines], form))
    header = _header(lines[0][1], form) if lines else None
    if header is not None:
        lines = lines[1:]
    if not lines:
        raise DataError(f"the list `{file}` names no video", _HINT)
    if header is None:
        _refuse_unknown_header(lines, form, file)
        read = [_plain_line(f"`{file}`, line {n}", line, form) for n, line in lines]
    else:
        columns = header.columns
        read = [_headed_line(f"`{file}`, line {n}", line, form, columns) for n, line in lines]
    labelled = any(line.label is not None for line in read)
    described = f"fields separated by {form}" if labelled else "paths without labels"
    if header is not None:
        described += ", with a header"
    return read, described, header


def _score(lines: list[str], form: str) -> tuple[bool, int, int]:
    """Rate a form: is there a header, how many paths look like videos, how many lines have more."""
    if not lines:
        return False, 0, 0
    header = _header(lines[0], form)
    count, path = (len(header.columns), header.columns.index("path")) if header else (2, 0)
    split = [_fields(line, form, count) for line in lines[:1000]]
    named = sum(len(fields) > path and has_video_suffix(fields[path]) for fields in split)
    return header is not None, named, sum(len(fields) > 1 for fields in split)


def _header(line: str, form: str) -> Header | None:
    """Read the first line, if it names the column of the paths."""
    fields = line.split() if form == "blanks" else _fields(line, form)
    columns: list[str] = []
    for name in fields:
        kind = _COLUMNS.get(re.sub(r"[\s_-]", "", name).lower(), "")
        columns.append(kind if kind not in columns else "")
    if "path" not in columns:
        return None
    if "start" not in columns and "end" not in columns:  # names are those of segments
        columns = ["" if kind == "name" else kind for kind in columns]
    unused = [name for name, kind in zip(fields, columns, strict=True) if name and not kind]
    return Header(columns, unused)


def _refuse_unknown_header(lines: list[tuple[int, str]], form: str, file: str) -> None:
    """Raise a DataError if the first line names columns, none of which is known for paths."""
    if len(lines) < 2:
        return
    first, *others = (_fields(line, form) for _, line in lines[:20])
    names = len(first) > 1 and not any(re.search(r"[./\\]|^-?\d+$", field) for field in first)
    if names and all(any(has_video_suffix(field) for field in fields) for fields in others):
        raise DataError(
            f"`{file}`, line {lines[0][0]}: `{lines[0][1]}` looks like a header, but no column is"
            " known to hold the paths",
            "call that column `path`, and the others `label`, `start`, `end` or as you like",
        )


def _fields(line: str, form: str, count: int = 2) -> list[str]:
    """Split a line; a quote that stays open gives no field at all."""
    if form == "blanks":
        return _fields_by_blanks(line, count)
    if form == "`::`":
        return [field.strip() for field in line.split("::")]
    try:
        rows = list(csv.reader([line], delimiter=_FORMS[form], skipinitialspace=True, strict=True))
    except csv.Error:
        return []
    return [field.strip() for field in rows[0]]


def _fields_by_blanks(line: str, count: int) -> list[str]:
    """Split at blanks; a path may hold some if it is quoted or ends in the suffix of a video."""
    if line[0] in "\"'":
        quoted = re.fullmatch(r"(['\"])(?P<path>.*?)\1(?:\s+(?P<rest>.*))?", line)
        return [] if quoted is None else [quoted["path"], *_rest(quoted["rest"] or "", count)]
    ends = [found.start() for found in re.finditer(r"\s+", line)]
    for end in [*ends, len(line)]:
        if has_video_suffix(line[:end]):
            return [line[:end], *_rest(line[end:].strip(), count)]
    return line.rsplit(None, count - 1)


def _rest(text: str, count: int) -> list[str]:
    """Split what follows a path; of more words than columns, the first ones belong together."""
    return text.rsplit(None, count - 2) if text and count > 2 else [text] if text else []


def _headed_line(where: str, line: str, form: str, columns: list[str]) -> Line:
    fields = _fields(line, form, len(columns))
    if not fields:
        raise DataError(f"{where}: a quote is not closed: `{line}`", _HINT)
    found = {kind: field for kind, field in zip(columns, fields, strict=False) if kind}
    if not found.get("path"):
        raise DataError(f"{where}: no path: `{line}`", _HINT)
    segment = read_segment(found.get("start", ""), found.get("end", ""), where)
    name = found.get("name") if segment else None
    if name and "#" in name:
        raise DataError(f"{where}: the segment's name `{name}` holds a `#`", "leave it out")
    return Line(found["path"], found.get("label") or None, where, segment, name or None)


def _plain_line(where: str, line: str, form: str) -> Line:
    fields = _fields(line, form)
    if not fields:
        raise DataError(f"{where}: a quote is not closed: `{line}`", _HINT)
    numbers = re.fullmatch(r"(.*?)((?:[\s,]+-?\d+){2,})", " ".join(fields))
    if numbers is not None:
        if numbers[2].split() == ["0", "-1"]:  # how VideoMAE V2 lists a video for pretraining
            return Line(numbers[1], None, where)
        if not has_video_suffix(numbers[1]):
            raise DataError(
                f"{where}: a folder of images and its number of frames, not a video: `{line}`",
                "list the videos that the images were taken from, or encode the images as videos",
            )
    if len(fields) > 2 or (numbers is not None and form == "blanks"):
        raise DataError(
            f"{where}: more than a path and a label: `{line}`",
            f"{_HINT}; a header such as `path,label,start,end` names further columns"
            + ("; a video has one label" if numbers else ""),
        )
    if not fields[0]:
        raise DataError(f"{where}: no path: `{line}`", _HINT)
    return Line(fields[0], fields[1] if len(fields) > 1 and fields[1] else None, where)
