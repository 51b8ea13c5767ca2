"""A store on disk: `dataset.json` and `manifest.jsonl`, read and written safely.

STORE/dataset.json            format version, settings, class names and groups, counts
STORE/manifest.jsonl          one `Row` for each source, sorted by id
STORE/shards/NNNNN.safetensors    for each video `<id>/times offsets motion jpeg valid`; without
                              pictures (`frames: none`) no `offsets` and no `jpeg`
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tatscli.errors import UsageError
from tatscli.files import write_safely

FORMAT_VERSION = 1
DATASET, MANIFEST, SHARDS = "dataset.json", "manifest.jsonl", "shards"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Settings(_Record):
    """How sources are converted into frames and motion; the same for the whole store."""

    short_side: Annotated[int, Field(ge=1)] | None = 256
    """Larger frames are scaled down to this; null keeps every size."""
    quality: Annotated[int, Field(ge=1, le=31)] = 3
    """FFmpeg's JPEG scale: 2 is best, 31 smallest."""
    frames: Literal["jpeg", "none"] = "jpeg"
    """Whether the store holds frames, or motion only."""
    motion: Literal["auto", "native", "reencode", "none"] = "auto"
    """Source of the motion vectors: the codec's own, a re-encoding, whichever suits the file, or
    none."""
    motion_cell: Annotated[int, Field(ge=1)] = 16
    """Side of a cell of the motion field, in stored pixels."""
    camera: Literal["none", "median", "affine"] = "none"
    """Model of the camera's own motion, which is subtracted from the field."""


class Row(_Record):
    """One source of the store: a video, or a segment of one."""

    id: str
    """Path of the source relative to the prepared folder, absolute where it lies outside; a segment
    adds `#` and its name."""
    path: str | None = None
    """The path alone, where the id says more: segments."""
    start: float | None = None
    """First second of a segment, from the beginning of the video as players count."""
    end: float | None = None
    """End of a segment: the first second after it."""
    status: Literal["ok", "failed"]
    reason: str | None = None
    """Why it failed."""
    warning: str | None = None
    """What is missing although it is ok: frames of a damaged or cut file."""
    label: int | None = None
    """Index into the class names."""
    split: str | None = None
    """The split it belongs to."""
    also_in: tuple[str, ...] = ()
    """Further splits that list it."""
    bytes: int = 0
    """Size of the source file."""
    codec: str | None = None
    """Codec of the source."""
    pixel_format: str | None = None
    """FFmpeg's name of the decoded pixel format, such as `yuv420p10le`."""
    interlaced: bool = False
    """Whether any of its frames was interlaced; these have been deinterlaced."""
    aspect: float = 1.0
    """Width of a decoded pixel by its height; the stored ones are square."""
    fps: float | None = None
    """Frames per second, measured on the presentation times."""
    frames: int = 0
    width: int = 0
    """Width of the stored picture."""
    height: int = 0
    """Height of the stored picture."""
    duration: float = 0.0
    """Seconds from the first frame to the end of the last."""
    source_width: int = 0
    """Width of the decoded picture, before it is turned and scaled."""
    source_height: int = 0
    """Height of the decoded picture, before it is turned and scaled."""
    rotation: int = 0
    """Degrees clockwise by which frames and motion were rotated to be upright."""
    mirrored: bool = False
    """Whether they were mirrored left to right before that."""
    motion: Literal["native", "reencode", "none"] = "none"
    """Source of the motion field: the codec's own vectors, those of a re-encoding, or none."""
    motion_why: str | None = None
    """Why this source."""
    moving: int = 0
    """Frames with motion vectors."""
    shard: str | None = None
    """Path of the shard inside the store."""
    checksum: str | None = None
    """BLAKE2b (128 bits, hex) of its tensors' bytes, in the order of their names."""

    def in_split(self, split: str | None) -> bool:
        """Whether a split lists this source; None is the whole store."""
        return split is None or split == self.split or split in self.also_in


class Counts(_Record):
    """Totals of the manifest."""

    ok: int = 0
    failed: int = 0
    frames: int = 0
    splits: dict[str, int] = {}
    """Videos that are ok in each split."""

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Counts:
        """Count rows."""
        rows = list(rows)
        ok = [row for row in rows if row.status == "ok"]
        splits: dict[str, int] = {}
        for row in ok:
            for split in (row.split, *row.also_in):
                if split is not None:
                    splits[split] = splits.get(split, 0) + 1
        frames = sum(row.frames for row in ok)
        return cls(
            ok=len(ok),
            failed=len(rows) - len(ok),
            frames=frames,
            splits=dict(sorted(splits.items())),
        )


class ClassGroup(_Record):
    """A grouping of classes, such as by the verb of actions that are pairs of verb and noun."""

    names: tuple[str, ...]
    """Names of its members: the verbs."""
    of: tuple[int, ...]
    """For each class the index of its member: the verb of each action."""

    @model_validator(mode="after")
    def _members_are_named(self) -> Self:
        wrong = [one for one in self.of if not 0 <= one < len(self.names)]
        if wrong:
            raise ValueError(f"member {wrong[0]} of a class group with {len(self.names)} names")
        return self


ClassGroups = dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ClassGroup]


class Dataset(_Record):
    """`dataset.json`."""

    format: Literal["tats-store"] = "tats-store"
    format_version: int = FORMAT_VERSION
    complete: bool = False
    """False while `tats prepare` is running, or after it was stopped."""
    settings: Settings = Settings()
    part: str | None = None
    """`I/N` if the store is one of N parts."""
    class_names: tuple[str, ...] = ()
    val_share: float | None = None
    """Share of the videos that `tats prepare --val-share` held out as split `val`."""
    val_group: str | None = None
    """Regular expression that names the group of a video in its path; groups were not divided."""
    class_groups: ClassGroups = {}
    """By name, if classes are combinations: which member of each group a class has."""
    counts: Counts = Counts()

    @model_validator(mode="after")
    def _groups_know_every_class(self) -> Self:
        for name, group in self.class_groups.items():
            if len(group.of) != len(self.class_names):
                raise ValueError(
                    f"class group `{name}` is of {len(group.of)} classes, not the"
                    f" {len(self.class_names)} of the store"
                )
        return self


def join_groups(
    parts: Sequence[tuple[Sequence[str], ClassGroups]], names: Sequence[str]
) -> ClassGroups:
    """Join the class groups of data sets whose classes are joined by name; so are the members.

    A group that does not know all of the joined classes is left out.

    Args:
        parts: Class names and groups of each data set.
        names: The joined class names.

    Raises:
        UsageError: A class has another member in one data set than in the other.
    """
    joined: ClassGroups = {}
    for key in dict.fromkeys(key for _, groups in parts for key in groups):
        having = [(classes, groups[key]) for classes, groups in parts if key in groups]
        members = tuple(dict.fromkeys(name for _, group in having for name in group.names))
        member: dict[str, str] = {}
        for classes, group in having:
            for name, index in zip(classes, group.of, strict=True):
                own = group.names[index]
                if member.setdefault(name, own) != own:
                    raise UsageError(
                        f"class `{name}` has the {key} `{member[name]}` here, `{own}` there",
                        "prepare both from the same annotations",
                    )
        if member.keys() >= set(names):
            number = {name: index for index, name in enumerate(members)}
            joined[key] = ClassGroup(
                names=members, of=tuple(number[member[name]] for name in names)
            )
    return joined


def read_rows(path: Path) -> list[Row]:
    """Read a manifest; a last line that a killed run left unfinished is dropped.

    Raises:
        pydantic.ValidationError: A finished line is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [Row.model_validate_json(line) for line in lines[:-1] if line]


def row_line(row: Row) -> bytes:
    """Return a row as its line of the manifest."""
    return row.model_dump_json().encode() + b"\n"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace a manifest."""
    write_safely(path, b"".join(map(row_line, rows)))


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a manifest and wait until they are on disk."""
    with path.open("ab") as file:
        file.write(b"".join(map(row_line, rows)))
        file.flush()
        os.fsync(file.fileno())


def write_dataset(folder: Path, dataset: Dataset) -> None:
    """Replace `dataset.json` of a store.

    What came later and is not used is not mentioned: so the fingerprints of older stores stay the
    same.
    """
    later = ("class_groups", "val_share", "val_group")
    unused = {name for name in later if not getattr(dataset, name)}
    text = dataset.model_dump_json(indent=2, exclude=unused)
    write_safely(folder / DATASET, text.encode() + b"\n")
