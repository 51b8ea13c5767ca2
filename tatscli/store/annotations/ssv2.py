"""Something-Something V2: JSON arrays of `{id, template, ...}` and videos called `<id>.webm`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations.classes import names_by_number
from tatscli.store.annotations.files import AnnotationFile, read_items, read_json, read_lines
from tatscli.store.annotations.formats import AnnotationFormat, AnnotationInput, Annotations, Entry

_LABELS = ("something-something-v2-labels.json", "labels.json")
_ANSWERS = ("something-something-v2-test-answers.csv", "test-answers.csv")
_LABELLED = re.compile(r'\s*\[\s*\{[^{}]*"template"\s*:')
_TEST = re.compile(r'\s*\[\s*\{\s*"id"\s*:\s*"?\w+"?\s*\}')


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is an array of objects with templates, or with nothing but ids."""
    return file.suffix == ".json" and bool(_LABELLED.match(file.head) or _TEST.match(file.head))


def read(inputs: AnnotationInput) -> Annotations:
    """Read the splits; videos of the test split have labels only if the answers are there.

    Raises:
        UsageError: The names of the classes are not there.
        DataError: A file is wrong.
    """
    labels = inputs.companion(*_LABELS)
    if labels is None:
        raise UsageError(
            f"there is no `labels.json` beside `{inputs.files[0].path}`",
            "it is part of the data set, and numbers the classes",
        )
    names = _class_names(labels)
    index = {name: number for number, name in enumerate(names)}
    answers = _answers(inputs)
    entries = []
    for file in inputs.files:
        split = file.split_or()
        for where, item in read_items(file.path):
            video = str(item.get("id", ""))
            if not video:
                raise DataError(f"{where}: no `id`")
            template = item.get("template")
            if template is None and split == "test":
                answered, template = answers.get(video, (where, None))
                label = None if template is None else _label(template, index, answered, labels)
            else:
                label = _label(template, index, where, labels)
            path = inputs.videos.named(video)
            entries.append(Entry(video, path, where, label, split))
    return Annotations(entries, names, [f"{len(names)} classes, named by `{labels}`"])


def _class_names(file: Path) -> list[str]:
    """Read template -> index, which is written as a string."""
    return names_by_number(
        (f"`{file}`, `{template}`", index, _plain(template))
        for template, index in read_json(file, dict).items()
    )


def _answers(inputs: AnnotationInput) -> dict[str, tuple[str, str]]:
    """Read `id;label` lines: where the answer for a video is, and the answer."""
    file = inputs.companion(*_ANSWERS)
    answers = {}
    for where, line in read_lines(file) if file else ():
        video, separator, label = line.partition(";")
        if not separator:
            raise DataError(f"{where}: `{line}` is not `id;label`")
        answers[video.strip()] = (where, label.strip())
    return answers


def _label(template: Any, index: dict[str, int], where: str, labels: Path) -> int:
    if not isinstance(template, str):
        raise DataError(f"{where}: no `template`", "only the test split may do without")
    number = index.get(_plain(template))
    if number is None:
        raise DataError(
            f"{where}: the template `{template}` is not in `{labels}`",
            "do both files belong to the same version of the data set?",
        )
    return number


def _plain(template: str) -> str:
    """Drop the brackets around the things in a template, which the class names do not have."""
    return template.replace("[", "").replace("]", "")


SSV2 = AnnotationFormat(
    title="Something-Something V2",
    files="`train.json`, `validation.json`, `test.json`",
    read=read,
    recognise=recognise,
    companions=_LABELS + _ANSWERS,
)
