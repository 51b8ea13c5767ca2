"""Which videos to prepare, and what is known about each: from a folder, lists, or a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tatscli.errors import DataError, TatsError, UsageError
from tatscli.store.annotations import DATASETS, AnnotationFormat
from tatscli.store.annotations.files import (
    AnnotationFile,
    files_in,
    named_files,
    places,
    places_around,
)
from tatscli.store.annotations.formats import AnnotationInput, Annotations, Entry
from tatscli.store.annotations.videos import Videos, readable
from tatscli.store.findings import count_of, findings_of, names_of
from tatscli.store.schema import ClassGroups
from tatscli.video.decode import Segment

_FALLBACKS = ("list", "folders")


@dataclass(frozen=True, slots=True)
class Source:
    """One video to prepare; the fields are those of its manifest row.

    Attributes:
        id: Path relative to the prepared folder, with `/`; absolute where it lies outside. One of
            several segments adds `#` and its name.
        path: Where the file is.
        label: Index of its class.
        split: The first part of the data that lists it.
        also_in: Further parts that list it.
        segment: The part of the file that is meant; None is all of it.
    """

    id: str
    path: Path
    label: int | None = None
    split: str | None = None
    also_in: tuple[str, ...] = ()
    segment: Segment | None = None

    @property
    def file(self) -> str:
        """The id without the name of a segment."""
        return self.id if self.segment is None else self.id.rpartition("#")[0] or self.id


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything to prepare.

    Attributes:
        folder: The folder that was given.
        items: The videos, sorted by id.
        class_names: Of the labels.
        findings: What was recognised, in sentences for the user.
        doubts: What may be a mistake.
        dataset: The form that was recognised, a key of `DATASETS`.
        missing: Rows of a data set that were left out because there is no file for them.
        class_groups: Where classes are combinations: by name, which member of a group each is.
    """

    folder: Path
    items: list[Source]
    class_names: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    dataset: str = "folders"
    missing: int = 0
    class_groups: ClassGroups = field(default_factory=dict)


def find_sources(
    folder: Path,
    annotations: Sequence[str] = (),
    *,
    dataset: str = "auto",
    labels: str | None = None,
) -> Sources:
    """Find the videos of a folder, or those that annotations name.

    Args:
        folder: Searched with all its sub-folders; paths in lists are relative to it.
        annotations: `FILE`, `SPLIT=FILE` or `FOLDER` each. Without any, the files of a data set are
            looked for in the folder, beside it, and in sub-folders that are called like it.
        dataset: A key of `DATASETS`, or `auto` to recognise it.
        labels: Which labels of a data set that has several kinds: `action`, `verb` or `noun`.

    Raises:
        UsageError: The folder or an annotation file does not exist, or cannot be what it is said
            to be.
        DataError: There is no video, or an annotation is wrong.
    """
    if not folder.exists():
        raise UsageError(f"there is no folder `{folder}`", "give the folder with the videos")
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is a file", "give the folder with the videos")
    if dataset not in ("auto", *DATASETS):
        raise UsageError(
            f"unknown data set `{dataset}`", f"choose one of auto, {', '.join(DATASETS)}"
        )
    videos = Videos(folder)
    if annotations:
        name, inputs = _given(videos, annotations, dataset, labels)
    elif dataset not in ("auto", "folders"):
        name, inputs = dataset, _searched(videos, dataset, labels)
    elif dataset == "auto":
        return _recognised(videos, labels)
    else:
        name, inputs = dataset, AnnotationInput(videos, labels=labels)
    _check_labels(name, labels)
    return _gather(name, inputs, DATASETS[name].read(inputs))


def _given(
    videos: Videos, annotations: Sequence[str], dataset: str, labels: str | None
) -> tuple[str, AnnotationInput]:
    """Find out what the annotations that the user gave are."""
    if dataset == "folders":
        raise UsageError(
            "`--dataset folders` takes labels from the names of folders, not from annotations",
            "leave out one of the two options",
        )
    files, folders = named_files(annotations, videos.folder)
    around = [place for folder in folders for place in places(folder)]

    def chosen(form: AnnotationFormat) -> list[AnnotationFile]:
        found = [file for place in around for file in files_in(place, form.recognise)]
        return [*(file for file in files if form.recognise(file)), *found]

    if dataset == "auto":
        known = [name for name in DATASETS if name not in _FALLBACKS and chosen(DATASETS[name])]
        if len(known) > 1:
            raise UsageError(
                f"the annotations are of several data sets: {', '.join(known)}",
                f"choose one, such as `--dataset {known[0]}`",
            )
        dataset = known[0] if known else "list"
    form = DATASETS[dataset]
    companions = [file for file in files if file.path.name in form.companions]
    if dataset == "list":
        found = [file for place in around for file in files_in(place, form.recognise)]
        main = [*(file for file in files if file not in companions), *found]
    else:
        main = chosen(form)
        for file in files:
            if file not in main and file not in companions:
                raise UsageError(
                    f"`{file.path}` is not an annotation file of {form.title}",
                    f"its annotation files are {form.files}",
                )
    inputs = _material(videos, form, main, annotations, labels)
    return dataset, replace(inputs, companions=companions)


def _material(
    videos: Videos,
    form: AnnotationFormat,
    files: Sequence[AnnotationFile],
    looked_at: Sequence[object],
    labels: str | None,
) -> AnnotationInput:
    if not files:
        raise UsageError(
            f"no annotation files of {form.title} in {', '.join(f'`{at}`' for at in looked_at)}",
            f"they are {form.files}; give their folder or files with `--annotations`",
        )
    return AnnotationInput(videos, files, labels=labels)


def _searched(videos: Videos, dataset: str, labels: str | None) -> AnnotationInput:
    """Find the files of a data set near the videos: those of the nearest place that has any."""
    form, around = DATASETS[dataset], places_around(videos.folder)
    found = (files for place in around if (files := files_in(place, form.recognise)))
    return _material(videos, form, next(found, []), around, labels)


def _recognised(videos: Videos, labels: str | None) -> Sources:
    """Recognise a data set by files near the videos, if they list any of these; else take all."""
    others = []
    for place in places_around(videos.folder):
        for name, form in DATASETS.items():
            files = [] if name in _FALLBACKS else files_in(place, form.recognise)
            if not files:
                continue
            inputs = AnnotationInput(
                videos, files, labels=labels if labels in form.labels else None
            )
            try:
                annotated = form.read(inputs)
            except TatsError as error:
                hint = f"{error.hint}; " if error.hint else ""
                error.hint = f"{hint}`--dataset folders` takes the videos without annotations"
                raise
            if any(entry.path for entry in annotated.entries):
                _check_labels(name, labels)
                return _gather(name, inputs, annotated)
            others.append(f"{names_of(files)}: {form.title}, but it lists none of these videos")
    _check_labels("folders", labels)
    inputs = AnnotationInput(videos)
    sources = _gather("folders", inputs, DATASETS["folders"].read(inputs))
    return replace(sources, findings=[*others, *sources.findings])


def _check_labels(name: str, labels: str | None) -> None:
    kinds = DATASETS[name].labels
    if labels is not None and labels not in kinds:
        raise UsageError(
            f"{DATASETS[name].title} has no labels `{labels}`",
            f"choose one of {', '.join(kinds)}" if kinds else "leave out `--labels`",
        )


def _gather(name: str, inputs: AnnotationInput, annotated: Annotations) -> Sources:
    """Join what the entries say about the same video, and report on it."""
    folder, class_names = inputs.videos.folder, annotated.class_names
    root = os.path.abspath(folder)
    items: dict[str, Source] = {}
    first: dict[str, Entry] = {}
    missing = [entry for entry in annotated.entries if entry.path is None]
    for entry in annotated.entries:
        if entry.path is None:
            continue
        source = _source(entry, entry.path, root)
        known = items.get(source.id)
        if known is None:
            items[source.id], first[source.id] = source, entry
            continue
        if None not in (known.label, source.label) and known.label != source.label:
            raise DataError(
                f"{entry.where}: `{entry.video}` has label `{class_names[source.label or 0]}`, but"
                f" {first[source.id].where} says `{class_names[known.label or 0]}`",
                "a video has one label; correct one of the lines",
            )
        if known.segment != source.segment:
            raise DataError(
                f"{entry.where}: `{entry.video}` is a different segment than in"
                f" {first[source.id].where}",
                "segments of the same video need different names",
            )
        items[source.id] = _merge(known, source)
    findings, doubts = list(annotated.findings), list(annotated.doubts)
    if name not in _FALLBACKS:
        if not items:
            example = f", such as `{missing[0].video}`" if missing else ""
            raise DataError(
                f"none of the {len(missing)} videos that {names_of(inputs.files)} lists is in"
                f" `{folder}`{example}",
                "videos are found by name in all sub-folders; give the folder above them",
            )
        kind = "segment" if any(entry.name for entry in annotated.entries) else "video"
        findings[:0] = findings_of(DATASETS[name], inputs, list(items.values()), kind)
    closed = inputs.videos.closed
    if closed:
        doubts.append(
            f"{count_of(len(closed), 'folder')} cannot be read, such as `{closed[0]}`: their"
            " contents are left out"
        )
    loops, again = inputs.videos.loops, inputs.videos.again
    if loops:
        doubts.append(
            f"{count_of(len(loops), 'link')} to a folder above, such as `{loops[0]}`, not followed"
        )
    if again:
        doubts.append(
            f"{count_of(len(again), 'folder')} reached twice by links, such as `{again[0][0]}`,"
            f" which is `{again[0][1]}`: their videos are taken twice"
        )
    if missing:
        doubts.append(
            f"{len(missing)} of {count_of(len(annotated.entries), 'row')} have no video file and"
            f" are left out, such as `{missing[0].video}` ({missing[0].where})"
        )
    leaked = sum(
        bool(source.also_in) and "train" in (source.split, *source.also_in)
        for source in items.values()
    )
    if leaked:
        doubts.append(f"{count_of(leaked, 'video')} of split `train` also in another split")
    bare = [source for source in items.values() if source.label is None]
    if bare and class_names and name in _FALLBACKS:  # test sets of others are published so
        doubts.append(
            f"{len(bare)} of {count_of(len(items), 'video')} have no label, such as `{bare[0].id}`"
        )
    ordered = sorted(items.values(), key=lambda source: source.id)
    return Sources(
        folder, ordered, class_names, findings, doubts, name, len(missing), annotated.class_groups
    )


def _source(entry: Entry, path: Path, root: str) -> Source:
    identity = _identity(os.path.abspath(path), root)
    return Source(
        id=f"{identity}#{entry.name}" if entry.name else identity,
        path=path,
        label=entry.label,
        split=entry.split,
        also_in=entry.also_in,
        segment=entry.segment,
    )


def _identity(path: str, root: str) -> str:
    """Return an absolute path relative to the prepared folder, if it lies inside."""
    inside = path.removeprefix(root.rstrip(os.sep) + os.sep)
    return readable(inside.replace(os.sep, "/"))


def _merge(known: Source, again: Source) -> Source:
    """Join what two lines say about the same video."""
    splits = dict.fromkeys([known.split, *known.also_in, again.split, *again.also_in])
    named = [split for split in splits if split is not None]
    label = again.label if known.label is None else known.label
    return replace(known, label=label, split=named[0] if named else None, also_in=tuple(named[1:]))
