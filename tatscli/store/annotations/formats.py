"""Annotation formats: how their files are recognised, and what reading them returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tatscli.store.annotations.files import AnnotationFile
from tatscli.store.annotations.videos import Videos
from tatscli.store.schema import ClassGroups
from tatscli.video.decode import Segment


@dataclass(frozen=True, slots=True)
class Entry:
    """What the annotations say about one video, or one segment of it.

    Attributes:
        video: What they call it, for messages.
        path: Where its file is; None if there is none.
        where: File and line or item, for messages.
        label: Index of its class.
        split: The split it belongs to.
        also_in: Further splits.
        segment: The part of the file that is meant; None is all of it.
        name: Distinguishes segments of the same file.
    """

    video: str
    path: Path | None
    where: str
    label: int | None = None
    split: str | None = None
    also_in: tuple[str, ...] = ()
    segment: Segment | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Annotations:
    """The content of a data set's annotations.

    Attributes:
        entries: In the order of the files.
        class_names: Of the labels.
        findings: What was recognised, in sentences for the user.
        doubts: What may be a mistake.
        class_groups: If classes are combinations: by name, which member of a group each class has.
    """

    entries: list[Entry]
    class_names: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    class_groups: ClassGroups = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnnotationInput:
    """What a format reads.

    Attributes:
        videos: Those of the prepared folder.
        files: The annotation files.
        companions: Files that the user gave along with them: class names, answers.
        labels: Which kind of labels to read, if there are several; None is the usual one.
    """

    videos: Videos
    files: Sequence[AnnotationFile] = ()
    companions: Sequence[AnnotationFile] = ()
    labels: str | None = None

    def companion(self, *names: str) -> Path | None:
        """Return the first of some files that was given, or that lies beside the annotations."""
        for name in names:
            given = [file.path for file in self.companions if file.path.name == name]
            beside = [file.path.with_name(name) for file in self.files]
            for path in (*given, *beside):
                if path.is_file():
                    return path
        return None


@dataclass(frozen=True, slots=True)
class AnnotationFormat:
    """A format of annotations.

    Attributes:
        title: Common name of the data set.
        files: Names of its annotation files, for messages.
        read: Reads them.
        recognise: Whether a file is one of them.
        companions: Names of files that may go with them.
        labels: Kinds of labels to choose from, the usual one first.
    """

    title: str
    files: str
    read: Callable[[AnnotationInput], Annotations]
    recognise: Callable[[AnnotationFile], bool]
    companions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def validate_on_test(annotations: Annotations) -> Annotations:
    """Use the test split for validation too, if the data set has no validation split."""
    splits = {entry.split for entry in annotations.entries}
    if "test" not in splits or "val" in splits:
        return annotations
    entries = [
        replace(entry, also_in=("val",)) if entry.split == "test" else entry
        for entry in annotations.entries
    ]
    finding = "there is no validation split: `test` is used as `val` too, as is customary"
    return replace(annotations, entries=entries, findings=[*annotations.findings, finding])
