"""HMDB51: for each class and fold a file of names and flags, 1 train, 2 test, 0 unused."""

from __future__ import annotations

import re
from pathlib import Path

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations.files import AnnotationFile, read_lines
from tatscli.store.annotations.formats import (
    AnnotationFormat,
    AnnotationInput,
    Annotations,
    Entry,
    validate_on_test,
)

_FILE = re.compile(r"(?P<label>.+)_test_split(?P<fold>[123])\.txt")
_SPLITS = {"0": None, "1": "train", "2": "test"}


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is called `<class>_test_split1.txt` or the like."""
    return _FILE.fullmatch(file.path.name) is not None


def read(inputs: AnnotationInput) -> Annotations:
    """Read all classes of one fold: that of the files which the user named, or fold 1.

    Raises:
        UsageError: There is no such fold, or several are asked for.
        DataError: A line is wrong.
    """
    given = [file for file in inputs.files if file.given]
    folds = {_parts(file.path)[1] for file in given} or {"1"}
    named = next((file.split for file in given if file.split), None)
    if named or len(folds) > 1:
        raise UsageError(
            f"a file of HMDB51 lists train and test together, not the split `{named}`"
            if named
            else f"the files are of the folds {', '.join(sorted(folds))}",
            "name one file of the fold you want: its other classes are found beside it",
        )
    (fold,) = folds
    folder = (given or inputs.files)[0].path.parent
    files = sorted(
        (path for path in folder.iterdir() if _parts(path)[1] == fold),
        key=lambda path: _parts(path)[0],
    )
    if not files:
        raise UsageError(
            f"there is no fold {fold} in `{folder}`",
            "name a file of the fold you want: `--annotations brush_hair_test_split2.txt`",
        )
    entries = []
    for label, file in enumerate(files):
        name = _parts(file)[0]
        for where, line in read_lines(file):
            video, flag = (["", *line.rsplit(None, 1)])[-2:]
            if not video or flag not in _SPLITS:
                raise DataError(
                    f"{where}: `{flag}` in `{line}` is not 0 (unused), 1 (train) or 2 (test)",
                    "a line is `name.avi 1`",
                )
            path = inputs.videos.named(Path(video).stem, folders=(name,))
            entries.append(Entry(video, path, where, label, _SPLITS[flag]))
    names = [_parts(file)[0] for file in files]
    unused = sum(entry.split is None and entry.path is not None for entry in entries)
    findings = [f"fold {fold}, {len(names)} classes from the names of the files"]
    if unused:
        findings.append(f"videos that the fold leaves out, in no split: {unused}")
    return validate_on_test(Annotations(entries, names, findings))


def _parts(path: Path) -> tuple[str, str]:
    """Return class and fold of a file's name; nothing of other files."""
    found = _FILE.fullmatch(path.name)
    return (found["label"], found["fold"]) if found else ("", "")


HMDB51 = AnnotationFormat(
    title="HMDB51",
    files="`<class>_test_split1.txt`",
    read=read,
    recognise=recognise,
)
