"""The checkpoint folders of a run, read without torch: which there are, what became of the links,
and what is damaged.

Checked for damage are `meta.json`, the files it names, and of every safetensors file the header,
which says how long the file must be. Bytes that rotted inside the data are not found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from tatscli.errors import DataError
from tatscli.jsonfiles import read_object, reason_of
from tatscli.tensors import read_header

PREFIX = "step-"
REPLACED = "replaced"
"""In a run folder: the run that this one replaces as soon as it has a checkpoint."""


class _Meta(BaseModel):
    """What the keys of a `meta.json` must be where they are there; there are others."""

    kind: Literal["pretrained", "finetuned", "tokenizer"]
    step: Annotated[int, Field(ge=0)]
    files: list[str] = []
    recipe: dict[str, Any] = {}
    name: str | None = None
    tats: str | None = None
    store: str | None = None
    store_fingerprint: str | None = None
    init: str | None = None
    class_names: list[str] | None = None
    class_groups: dict[str, dict[str, Any]] = {}
    frozen: list[dict[Literal["path", "sha256"], str]] = []
    best_score: float | None = None
    processes: int = 1


def kept_in(root: Path) -> list[Path]:
    """Return the numbered checkpoints in a folder, the newest first, intact or not."""
    numbered = [one for one in root.glob(f"{PREFIX}*") if step_in(one.name) is not None]
    numbered = [one for one in numbered if one.is_dir()]
    return sorted(numbered, key=lambda one: step_in(one.name) or 0, reverse=True)


def has_checkpoints(folder: Path) -> bool:
    """Whether a run folder has any checkpoint, intact or not."""
    root = folder / "checkpoints"
    return bool(kept_in(root)) or pointed_at(root, "last") is not None


def pointed_at(root: Path, name: str) -> Path | None:
    """Return the folder that a link, or what became of it, means; None where there is none.

    It may be missing.
    """
    link = root / name
    if link.is_symlink():
        target = root / os.readlink(link)
        return target if target.exists() else root / target.name  # the run may have moved
    if link.is_dir():
        return link
    try:
        with link.open("rb") as file:
            text = file.read(64).decode().strip()
    except (OSError, ValueError):
        return None
    return root / text if step_in(text) is not None else None


def step_in(name: str) -> int | None:
    """Return the step in the name of a checkpoint; None of other names."""
    number = name.removeprefix(PREFIX)
    return int(number) if name.startswith(PREFIX) and number.isdecimal() else None


def read_meta(folder: Path) -> dict[str, Any] | str:
    """Read `meta.json` of a checkpoint; a string says why it cannot be used."""
    try:
        meta = read_object(folder / "meta.json")
    except DataError as error:
        return error.message
    if meta is None:
        return "its `meta.json` is missing" if folder.is_dir() else "it is missing"
    if "format" not in meta:
        return "its `meta.json` is not that of a checkpoint: it has no `format`"
    return meta


def damage_of(folder: Path, meta: dict[str, Any]) -> str | None:
    """Return what is wrong with the files of a checkpoint, if anything.

    Args:
        folder: The checkpoint.
        meta: Its `meta.json`; those of earlier versions name no files.
    """
    missing = [key for key in ("kind", "step") if key not in meta]
    if missing:
        return f"its `meta.json` has no `{missing[0]}`"
    try:
        _Meta.model_validate(meta, strict=True)
    except ValidationError as error:
        return f"its `meta.json` is not right: {reason_of(error)}"
    for name in meta.get("files", ["model.safetensors"]):
        if not (folder / name).is_file():
            return f"`{name}` is missing"
    for file in sorted(folder.glob("*.safetensors")):
        problem = _wrong_length(file)
        if problem is not None:
            return f"`{file.name}` {problem}"
    return None


def _wrong_length(file: Path) -> str | None:
    """Compare the length of a safetensors file with what its header says."""
    try:
        header, start = read_header(file)
        ends = [one["data_offsets"][1] for one in header.values()]
        size, wanted = file.stat().st_size, start + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"cannot be read: {error}"
    return None if size == wanted else f"has {size} bytes, and its header asks for {wanted}"
