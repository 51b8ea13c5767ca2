"""Which videos there are, and what is known about each: from a folder tree, or from lists."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tatscli.errors import DataError, UsageError
from tatscli.store.annotations import Entry, has_video_suffix, read_list, resolve_labels
from tatscli.video.decode import Segment

SPLIT_FOLDERS = frozenset({"train", "val", "validation", "test"})


@dataclass(frozen=True, slots=True)
class Source:
    """One video to prepare; the fields are those of its manifest row.

    Attributes:
        id: Path relative to the prepared folder, with `/`; absolute where it lies outside.
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


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything to prepare.

    Attributes:
        folder: The folder that was given.
        items: The videos, sorted by id.
        class_names: Of the labels.
        findings: What was recognised, in sentences for the user.
        doubts: What may be a mistake.
    """

    folder: Path
    items: list[Source]
    class_names: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def find_sources(folder: Path, annotations: Sequence[str] = ()) -> Sources:
    """Find the videos of a folder, or those that lists name.

    Args:
        folder: Searched with all its sub-folders; paths in lists are relative to it.
        annotations: `FILE` or `SPLIT=FILE` each.

    Raises:
        UsageError: The folder, or a list, does not exist.
        DataError: There is no video, or a list is wrong.
    """
    if not folder.exists():
        raise UsageError(f"there is no folder `{folder}`", "give the folder that holds the videos")
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is a file", "give the folder that holds the videos")
    return _from_lists(folder, annotations) if annotations else _from_tree(folder)


def _from_tree(folder: Path) -> Sources:
    """Take every file called like a video; sub-folders are classes, or splits with classes."""
    found: list[PurePosixPath] = []
    others: Counter[str] = Counter()
    for path in _walk(folder):
        if has_video_suffix(path.name):
            found.append(path)
        else:
            others[path.suffix.lower() or "no suffix"] += 1
    if not found:
        seen = ", ".join(f"{n} x {suffix}" for suffix, n in others.most_common(3))
        raise DataError(
            f"no videos in `{folder}`: {f'it holds {seen}' if seen else 'it is empty'}",
            "give the folder that holds the videos (.mp4, .webm, .avi, ...)",
        )
    tops = {path.parts[0] for path in found if len(path.parts) > 1}
    by_split = bool(tops) and {top.lower() for top in tops} <= SPLIT_FOLDERS
    level = 1 if by_split else 0
    classes = sorted({path.parts[level] for path in found if len(path.parts) > level + 1})
    if len(classes) == 1:  # one folder says nothing: `clips/`
        classes = []
    index = {name: number for number, name in enumerate(classes)}
    items = [
        Source(
            id=_readable(str(path)),
            path=folder / path,
            label=index.get(path.parts[level]) if len(path.parts) > level + 1 else None,
            split=path.parts[0] if by_split and len(path.parts) > 1 else None,
        )
        for path in found
    ]
    findings = [f"found {_videos(len(items))} in `{folder}`"]
    if by_split:
        findings.append(f"the sub-folders are splits: {', '.join(sorted(tops))}")
    if classes:
        findings.append(f"{len(classes)} classes from the names of sub-folders")
    else:
        findings.append("no class sub-folders: videos are unlabelled")
    return Sources(folder, _by_id(items), [_readable(name) for name in classes], findings)


def _from_lists(folder: Path, annotations: Sequence[str]) -> Sources:
    """Take what lists name, and nothing else."""
    named = [_split_and_file(annotation, folder) for annotation in annotations]
    lists = [read_list(file, split) for split, file in named]
    class_names, index = resolve_labels(lists)
    items: dict[str, Source] = {}
    first: dict[str, Entry] = {}
    for video_list in lists:
        for entry in video_list.entries:
            path = _locate(entry.path, folder, video_list.file.parent)
            source = Source(
                id=_identity(path, folder),
                path=path,
                label=index.get(entry.label) if entry.label else None,
                split=video_list.split,
            )
            known = items.get(source.id)
            if known is None:
                items[source.id], first[source.id] = source, entry
                continue
            if None not in (known.label, source.label) and known.label != source.label:
                raise DataError(
                    f"{entry.where}: `{entry.path}` has label `{entry.label}`, but"
                    f" {first[source.id].where} says `{first[source.id].label}`",
                    "a video can have one label; correct one of the lines",
                )
            items[source.id] = _merge(known, source)
    if not any(source.path.exists() for source in items.values()):
        example = next(iter(items.values()))
        raise DataError(
            f"none of the {len(items)} listed videos exists, such as `{example.path}`",
            f"paths in a list are relative to `{folder}` or to the folder of the list",
        )
    findings = [
        f"`{item.file}`: {_videos(len(item.entries))} in split `{item.split}`, {item.form}"
        for item in lists
    ]
    if class_names:
        named_by = "`labels.txt`" if any(item.class_names for item in lists) else "the lists"
        findings.append(f"{len(class_names)} classes, named by {named_by}")
    else:
        findings.append("the lists hold no labels: videos are unlabelled")
    leaked = sum(bool(source.also_in) and source.split == "train" for source in items.values())
    doubts = [f"{_videos(leaked)} of split `train` are in another split too"] if leaked else []
    return Sources(folder, _by_id(items.values()), class_names, findings, doubts)


def _split_and_file(annotation: str, folder: Path) -> tuple[str, Path]:
    """Read `FILE` or `SPLIT=FILE`; a file that is not here may be in the prepared folder."""
    split, equals, name = annotation.partition("=")
    if not equals or Path(annotation).exists():
        split, name = "", annotation
    for file in (Path(name), folder / name):
        if file.is_file():
            return split or file.stem, file
    raise UsageError(f"there is no list `{name}`", "give `--annotations FILE` or `SPLIT=FILE`")


def _locate(written: str, folder: Path, beside: Path) -> Path:
    """Return where a listed file is: relative to the prepared folder, else to its list."""
    inside, near = (Path(os.path.normpath(base / written)) for base in (folder, beside))
    return near if not inside.exists() and near.exists() else inside


def _identity(path: Path, folder: Path) -> str:
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return _readable((path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())


def _merge(known: Source, again: Source) -> Source:
    """Join what two lines say about the same video."""
    splits = dict.fromkeys([known.split, *known.also_in, again.split])
    first, *others = (split for split in splits if split is not None)
    label = again.label if known.label is None else known.label
    return replace(known, label=label, split=first, also_in=tuple(others))


def _walk(folder: Path) -> Iterator[PurePosixPath]:
    """Yield the files below a folder, following links, without hidden ones (macOS' `._a.mp4`)."""
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(root).relative_to(folder)
        for name in files:
            if not name.startswith("."):
                yield PurePosixPath(relative, name)


def _by_id(items: Iterable[Source]) -> list[Source]:
    return sorted(items, key=lambda source: source.id)


def _readable(name: str) -> str:
    """Return a file name as valid text: Linux allows any bytes in names, JSON does not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _videos(count: int) -> str:
    return f"{count} video{'' if count == 1 else 's'}"
