"""Writing the splits of a store as lists of videos, for VideoMAE and similar code.

The usual form is what their readers demand: a file called `<split>.csv` although it is none, no
header, `path label` with exactly one space, and no quotes, so that a path with a space cannot be
written. The comma form is a true table with a header; it can hold any path, and segments.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Sequence
from pathlib import Path

from tatscli.errors import DataError, UsageError
from tatscli.files import write_safely
from tatscli.store.annotations.lines import parse_lines
from tatscli.store.annotations.times import write_seconds
from tatscli.store.reader import Store
from tatscli.store.schema import Row

LABELS, UNSPLIT = "labels.txt", "unsplit"
SEPARATORS = (" ", ",")
_COMMAS = "write tables with commas instead: `--separator ,`"


def write_lists(
    store: Store, out: Path, *, root: str | None = None, separator: str = " "
) -> list[Path]:
    """Write a list for each split, and the names of the classes in `labels.txt`.

    Only videos that are ok are listed, each in every split it belongs to; those in none are in
    `unsplit.csv`. Videos without a label have -1.

    Args:
        store: What to list.
        out: The folder for the lists; files of the same name are replaced.
        root: Put before paths that are relative; without it they are as in the store.
        separator: Between the fields: a space or a comma.

    Returns:
        The files, `labels.txt` last.

    Raises:
        UsageError: There is no such separator, or it cannot hold a path or a segment.
        DataError: There is no video to list, a name cannot be written in a list, or the lists
            cannot be written.
    """
    if separator not in SEPARATORS:
        raise UsageError(f"separator `{separator}` is neither a space nor a comma")
    splits: dict[str, list[Row]] = {}
    for row in store.rows:
        if row.status == "ok":
            for split in dict.fromkeys((row.split, *row.also_in)):
                splits.setdefault(split or UNSPLIT, []).append(row)
    texts = {
        f"{_file_name(split)}.csv": _list(rows, store.class_names, root, separator)
        for split, rows in sorted(splits.items())
    }
    if store.class_names:
        texts[LABELS] = _labels(store.class_names)
    if not splits:
        raise DataError(f"`{store.path}` holds no readable video to list")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_safely(out / name, text)
    except OSError as error:
        raise DataError(f"cannot write `{error.filename or out}`: {error.strerror}") from error
    return [out / name for name in texts]


def _file_name(split: str) -> str:
    if split in ("", ".", "..") or "/" in split or "\\" in split or not split.isprintable():
        raise DataError(f"the split `{split}` cannot be the name of a file")
    return split


def _list(rows: Sequence[Row], class_names: Sequence[str], root: str | None, by: str) -> str:
    """Return the text of a list, which our own reader has understood."""
    segments = any(_is_segment(row) for row in rows)
    if segments and by == " ":
        row = next(row for row in rows if _is_segment(row))
        raise UsageError(
            f"`{row.id}` is a segment of a video, which a plain list cannot express", _COMMAS
        )
    written = [(_path(row, root), "-1" if row.label is None else str(row.label)) for row in rows]
    if by == " ":
        for path, _ in written:
            if len(path.split()) != 1 or path.split()[0] != path or path[0] in "\"'":
                raise UsageError(f"`{path}` cannot be written in a list without quotes", _COMMAS)
        text = "".join(f"{path} {label}\n" for path, label in written)
    else:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["path", "label", *(["start", "end", "name"] if segments else [])])
        for row, fields in zip(rows, written, strict=True):
            writer.writerow([*fields, *(_times(row) if segments else [])])
        text = table.getvalue()
    _check(text, written, by)
    return text


def _check(text: str, written: Sequence[tuple[str, str]], by: str) -> None:
    """Read a list back: names are odder than any rule for them."""
    try:
        # A file is read with universal newlines, so a lone carriage return ends a line as well.
        lines, *_ = parse_lines(io.StringIO(text, newline=None).read(), "list")
        read = [(line.path, line.label) for line in lines]
    except DataError:
        read = []
    if read == list(written):
        return
    wrong = next((new[0] for new, old in zip(written, read, strict=False) if new != old), None)
    name = wrong or written[0][0]
    if by == " ":
        raise UsageError(f"`{name}` would be misread in a list without quotes", _COMMAS)
    raise DataError(f"`{name}` cannot be written in a list", "rename the file and prepare it again")


def _path(row: Row, root: str | None) -> str:
    path = row.path or row.id
    return posixpath.join(root, path) if root else path


def _is_segment(row: Row) -> bool:
    return row.start is not None or row.end is not None


def _times(row: Row) -> list[str]:
    """Return start, end and name of a segment; nothing for a whole video."""
    if not _is_segment(row):
        return ["", "", ""]
    end = "" if row.end is None else write_seconds(row.end)
    named = row.path is not None and row.id.startswith(f"{row.path}#")
    name = row.id[len(row.path) + 1 :] if named and row.path is not None else ""
    return [write_seconds(row.start or 0.0), end, name]


def _labels(class_names: Sequence[str]) -> str:
    for name in class_names:
        if "\n" in name or "\r" in name or name != name.strip():
            raise DataError(f"the class `{name}` cannot be a line of `{LABELS}`")
    return "".join(f"{name}\n" for name in class_names)
