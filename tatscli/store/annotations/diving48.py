"""Diving48 V2: JSON arrays of `{vid_name, label, start_frame, end_frame}`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations.files import AnnotationFile, read_items, read_json, whole_number
from tatscli.store.annotations.formats import (
    AnnotationFormat,
    AnnotationInput,
    Annotations,
    Entry,
    validate_on_test,
)
from tatscli.store.annotations.times import segment_name
from tatscli.store.schema import ClassGroup, ClassGroups
from tatscli.video.decode import Segment

_VOCABULARY = "Diving48_vocab.json"
_ARRAY = re.compile(r'\s*\[\s*\{[^{}]*"vid_name"\s*:')
_PARTS = ("takeoff", "somersault", "twist", "position")
_FIRST_VERSION = re.compile(r"Diving48_(train|test)\.json", re.IGNORECASE)


def recognise(file: AnnotationFile) -> bool:
    """Whether a file is an array of objects with `vid_name`."""
    return file.suffix == ".json" and _ARRAY.match(file.head) is not None


def read(inputs: AnnotationInput) -> Annotations:
    """Read the second version of the labels.

    The segment is kept as it is written. Files as published are cut to the dive, so that it is all
    of them, but uncut ones would otherwise be prepared whole. A class is named by four parts, which
    become the class groups of the store.

    Raises:
        UsageError: There is only the first version.
        DataError: An item is wrong.
    """
    old = [file for file in inputs.files if _FIRST_VERSION.fullmatch(file.path.name)]
    files = [file for file in inputs.files if file not in old]
    if not files or any(file.given for file in old):
        raise UsageError(
            f"`{old[0].path}` is version 1 of Diving48, which has many wrong labels",
            "get `Diving48_V2_train.json` and `Diving48_V2_test.json` from the data set's page;"
            " results on both versions cannot be compared",
        )
    vocabulary = inputs.companion(_VOCABULARY)
    names, groups = _class_names(vocabulary) if vocabulary else (None, {})
    entries = []
    for file in files:
        for where, item in read_items(file.path):
            video = str(item.get("vid_name", ""))
            if not video:
                raise DataError(f"{where}: no `vid_name`")
            label = whole_number(item.get("label"), where, "label")
            if names is not None and label >= len(names):
                raise DataError(
                    f"{where}: label `{label}` is too large: `{vocabulary}` names"
                    f" {len(names)} classes",
                    "labels count from 0",
                )
            path, segment = inputs.videos.named(video), _segment(item, where)
            name = segment_name(segment) if segment else None
            split = file.split_or()
            entries.append(Entry(video, path, where, label, split, segment=segment, name=name))
    if names is None:
        largest = max((entry.label or 0 for entry in entries), default=-1)
        names = [str(number) for number in range(largest + 1)]
        findings = [f"{len(names)} classes without names: there is no `{_VOCABULARY}`"]
    else:
        findings = [f"{len(names)} classes, named by `{vocabulary}`"]
    return validate_on_test(Annotations(entries, names, findings, class_groups=groups))


def _segment(item: dict[str, Any], where: str) -> Segment | None:
    """Return the frames of a dive, the last one excluded."""
    start, end = item.get("start_frame"), item.get("end_frame")
    if start is None and end is None:
        return None
    first = whole_number(start or 0, where, "start_frame")
    last = None if end is None else whole_number(end, where, "end_frame")
    if last is not None and last <= first:
        raise DataError(f"{where}: end_frame `{end}` is not after start_frame `{first}`")
    return Segment(first, last, "frames")


def _class_names(file: Path) -> tuple[list[str], ClassGroups]:
    """Read the names, and what they have in common where all are given in four parts."""
    items = read_json(file, list)
    names: list[str] = []
    for number, parts in enumerate(items):
        name = " ".join(map(str, parts)) if isinstance(parts, list) else str(parts)
        if name in names:
            raise DataError(f"`{file}`, item {number}: names the class `{name}` twice")
        names.append(name)
    if not items or {isinstance(one, list) and len(one) for one in items} != {len(_PARTS)}:
        return names, {}
    groups = {}
    for key, column in zip(_PARTS, zip(*items, strict=True), strict=True):
        words = [str(word) for word in column]
        members = sorted(set(words))
        of = tuple(members.index(word) for word in words)
        groups[key] = ClassGroup(names=tuple(members), of=of)
    return names, groups


DIVING48 = AnnotationFormat(
    title="Diving48",
    files="`Diving48_V2_train.json`, `Diving48_V2_test.json`",
    read=read,
    recognise=recognise,
    companions=(_VOCABULARY,),
)
