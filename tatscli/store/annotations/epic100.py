"""EPIC-KITCHENS-100: tables of actions, each a segment of a long video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tatscli.errors import DataError
from tatscli.store.annotations.classes import names_by_number
from tatscli.store.annotations.files import AnnotationFile, read_table, whole_number
from tatscli.store.annotations.formats import AnnotationFormat, AnnotationInput, Annotations, Entry
from tatscli.store.annotations.times import read_segment
from tatscli.store.schema import ClassGroup, ClassGroups

_COLUMNS = {"narration_id", "video_id", "start_timestamp", "stop_timestamp"}
_OTHER_TASKS = re.compile(r"uda|retrieval", re.IGNORECASE)
_LABELS = ("action", "verb", "noun")
_CLASS_FILES = {
    "verb": ("EPIC_100_verb_classes.csv", "verb_classes.csv"),
    "noun": ("EPIC_100_noun_classes_v2.csv", "EPIC_100_noun_classes.csv", "noun_classes.csv"),
}

Row = tuple[str, dict[str, str], str]  # where it is, its fields, its split


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is a table of segments, for action recognition."""
    return file.columns >= _COLUMNS and _OTHER_TASKS.search(file.path.name) is None


def read(inputs: AnnotationInput) -> Annotations:
    """Read the tables; rows without classes, such as the test split's, are unlabelled.

    Actions are pairs: their verbs and nouns become the class groups of the store.

    Raises:
        UsageError: A table does not say which split it lists.
        DataError: A row is wrong.
    """
    wanted = inputs.labels or _LABELS[0]
    rows: list[Row] = []
    for file in inputs.files:
        split = file.split_or()
        for where, row in read_table(file.path, *sorted(_COLUMNS)):
            rows.append((where, row, split))
    verbs, verb_names, verbs_from = _classes(inputs, rows, "verb")
    nouns, noun_names, nouns_from = _classes(inputs, rows, "noun")
    labels: list[int | None]
    groups: ClassGroups = {}
    if wanted == "action":
        pairs = [
            None if verb is None or noun is None else (verb, noun)
            for verb, noun in zip(verbs, nouns, strict=True)
        ]
        order = _order(zip(pairs, (split for *_, split in rows), strict=True))
        index = {pair: number for number, pair in enumerate(order)}
        labels = [None if pair is None else index[pair] for pair in pairs]
        names = [f"{verb_names[verb]} {noun_names[noun]}" for verb, noun in order]
        named_by = f"{verbs_from} and {nouns_from}"
        groups = {
            "verb": ClassGroup(names=tuple(verb_names), of=tuple(verb for verb, _ in order)),
            "noun": ClassGroup(names=tuple(noun_names), of=tuple(noun for _, noun in order)),
        }
    elif wanted == "verb":
        labels, names, named_by = verbs, verb_names, verbs_from
    else:
        labels, names, named_by = nouns, noun_names, nouns_from
    entries = []
    for (where, row, split), label in zip(rows, labels, strict=True):
        segment = read_segment(row["start_timestamp"], row["stop_timestamp"], where)
        video, name = row["video_id"], row["narration_id"]
        path = inputs.videos.named(video)
        entries.append(Entry(video, path, where, label, split, segment=segment, name=name))
    findings = [f"labels are {wanted}s: {len(names)} classes, named by {named_by}"]
    return Annotations(entries, names, findings, class_groups=groups)


def _order(pairs: Iterable[tuple[tuple[int, int] | None, str]]) -> list[tuple[int, int]]:
    """Return every pair of verb and noun once: those of training first, each part sorted."""
    trained: set[tuple[int, int]] = set()
    others: set[tuple[int, int]] = set()
    for pair, split in pairs:
        if pair is not None:
            (trained if split == "train" else others).add(pair)
    return [*sorted(trained), *sorted(others - trained)]


def _classes(
    inputs: AnnotationInput, rows: list[Row], kind: str
) -> tuple[list[int | None], list[str], str]:
    """Return the class of each row, the names of all classes, and what named them."""
    column = f"{kind}_class"
    classes = [
        whole_number(row[column], where, column) if row.get(column) else None
        for where, row, _ in rows
    ]
    file = inputs.companion(*_CLASS_FILES[kind])
    if file is None:
        names = _narrated_names(kind, classes, [row.get(kind, "") for _, row, _ in rows])
        return classes, names, f"the shortest {kind} of each class"
    table = read_table(file, "id", "key")
    names = names_by_number((where, row["id"], row["key"]) for where, row in table)
    for (where, _, _), number in zip(rows, classes, strict=True):
        if number is not None and number >= len(names):
            raise DataError(
                f"{where}: {column} `{number}` is too large: `{file}` names {len(names)} classes"
            )
    return classes, names, f"`{file}`"


def _narrated_names(kind: str, classes: list[int | None], words: list[str]) -> list[str]:
    """Name each class by the shortest word said for it; where two agree, by its number too."""
    shortest: dict[int, str] = {}
    for number, word in zip(classes, words, strict=True):
        if number is not None and word:
            known = shortest.get(number, word)
            shortest[number] = min(known, word, key=lambda text: (len(text), text))
    count = 1 + max((number for number in classes if number is not None), default=-1)
    names = [shortest.get(number, kind) for number in range(count)]
    times = Counter(names)
    return [
        f"{name} {number}" if times[name] > 1 or number not in shortest else name
        for number, name in enumerate(names)
    ]


EPIC100 = AnnotationFormat(
    title="EPIC-KITCHENS-100",
    files="`EPIC_100_train.csv`, `EPIC_100_validation.csv`, `EPIC_100_test_timestamps.csv`",
    read=read,
    recognise=recognise,
    companions=_CLASS_FILES["verb"] + _CLASS_FILES["noun"],
    labels=_LABELS,
)
