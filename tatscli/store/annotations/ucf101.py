"""UCF101: `classInd.txt` with indices from 1, and three folds of train and test lists."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations.classes import names_by_number
from tatscli.store.annotations.files import AnnotationFile, read_lines, whole_number
from tatscli.store.annotations.formats import (
    AnnotationFormat,
    AnnotationInput,
    Annotations,
    Entry,
    validate_on_test,
)

_CLASSES = "classInd.txt"
_LIST = re.compile(r"(?P<split>train|test)list(?P<fold>\d+)\.txt", re.IGNORECASE)


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is called `trainlist01.txt` or the like."""
    return _LIST.fullmatch(file.path.name) is not None


def read(inputs: AnnotationInput) -> Annotations:
    """Read the lists that the user named, or those of fold 1.

    Raises:
        UsageError: The names of the classes, or fold 1, are not there.
        DataError: A line is wrong.
    """
    files = [file for file in inputs.files if file.given or _fold(file) == 1]
    if not files:
        raise UsageError(
            f"there is no fold 1 beside `{inputs.files[0].path}`",
            "name the lists: `--annotations trainlist02.txt --annotations testlist02.txt`",
        )
    classes = inputs.companion(_CLASSES)
    if classes is None:
        raise UsageError(
            f"there is no `{_CLASSES}` beside `{files[0].path}`",
            "it is part of the data set, and numbers the classes;"
            " `--dataset list` reads a list without it",
        )
    names = _class_names(classes)
    index = {name.casefold(): number for number, name in enumerate(names)}
    entries = []
    for file in files:
        for where, line in read_lines(file.path):
            written, _, number = line.partition(" ")
            path = PurePosixPath(written)
            known = index.get(path.parent.name.casefold())
            if number:
                label = whole_number(number, where, "class") - 1
                if not 0 <= label < len(names):
                    raise DataError(
                        f"{where}: class `{number}` is not in `{classes}`", "classes count from 1"
                    )
                if known is not None and known != label:
                    raise DataError(
                        f"{where}: class `{number}` is `{names[label]}`, but the folder says"
                        f" `{path.parent.name}`"
                    )
            elif known is None:
                raise DataError(
                    f"{where}: the folder of `{line}` is not a class of `{classes}`",
                    "a line is `Class/v_Class_g01_c01.avi`",
                )
            else:
                label = known
            found = inputs.videos.named(path.stem, folders=(path.parent.name,))
            entries.append(Entry(path.stem, found, where, label, file.split_or()))
    folds = ", ".join(sorted({str(_fold(file)) for file in files}))
    findings = [f"fold {folds}, {len(names)} classes, named by `{classes}`"]
    return validate_on_test(Annotations(entries, names, findings))


def _fold(file: AnnotationFile) -> int:
    found = _LIST.fullmatch(file.path.name)
    return int(found["fold"]) if found else 0


def _class_names(file: Path) -> list[str]:
    """Read `<number from 1> <class>` lines."""
    lines = ((where, *line.partition(" ")) for where, line in read_lines(file))
    return names_by_number(
        ((where, number, name.strip()) for where, number, _, name in lines), first=1
    )


UCF101 = AnnotationFormat(
    title="UCF101",
    files="`trainlist01.txt`, `testlist01.txt`",
    read=read,
    recognise=recognise,
    companions=(_CLASSES,),
)
