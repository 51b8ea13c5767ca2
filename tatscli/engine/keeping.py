"""Writing checkpoints whole or not at all, pointing at them, and dropping old ones."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.engine.checkpoint import FORMAT
from tatscli.engine.folders import PREFIX, REPLACED, kept_in, pointed_at, read_meta
from tatscli.errors import CheckpointError
from tatscli.files import DISK_FULL, in_bytes, publish, remove, sync, system_error, write_safely
from tatscli.tensors import save_tensors

_HEADERS = 1 << 20  # bytes that names, shapes and `meta.json` may take beside the tensors


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: dict[str, Any],
    keep: int,
    best: bool,
) -> Path:
    """Write `checkpoints/step-NNNNNNN` in the run `folder`, point `last` (and `best`) at it, drop
    old ones, and the run that this one replaces.

    It is filled under a temporary name, synced and renamed; the links are swapped by a rename too.

    Args:
        folder: The run folder.
        step: Optimiser steps done.
        tensors: File stem to named tensors.
        meta: What `meta.json` says beside step, format and files.
        keep: Numbered checkpoints to keep; those behind `last` and `best` always stay.
        best: Whether this is the best one so far.

    Raises:
        CheckpointError: If it cannot be written; nothing of it is left, and others are as before.
    """
    root = folder / "checkpoints"
    final = root / f"{PREFIX}{step:07d}"
    draft, old = root / f".tmp-{final.name}", root / f".tmp-old-{final.name}"
    needed = _HEADERS + sum(one.nbytes for named in tensors.values() for one in named.values())
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(".tmp-*"):
            remove(stale)
        _fill(draft, step, tensors, meta, needed)
        if final.exists():  # a rename replaces no folder that holds something
            final.replace(old)
        publish(draft, final)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if old.exists() and not final.exists():
            old.replace(final)
        number = system_error(error)
        if number is None:
            raise
        raise _not_written(final, number, needed) from error
    remove(old)
    _point(root, "last", final)
    if best:
        _point(root, "best", final)
    _prune(root, step, keep)
    remove(folder / REPLACED)
    return final


def _fill(
    draft: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    meta: dict[str, Any],
    needed: int,
) -> None:
    if shutil.disk_usage(draft.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    draft.mkdir()
    strings = {"format": str(FORMAT), "kind": str(meta["kind"]), "step": str(step)}
    for part, named in tensors.items():
        save_tensors(draft / f"{part}.safetensors", named, strings)
    files = sorted(file.name for file in draft.iterdir())
    about = {"format": FORMAT, "step": step, **meta, "files": files}
    write_safely(draft / "meta.json", json.dumps(about, indent=1, ensure_ascii=False))
    for file in draft.iterdir():
        sync(file)


def _not_written(final: Path, number: int, needed: int) -> CheckpointError:
    earlier = [one for one in kept_in(final.parent) if one != final]
    goes_on = "start again with `--resume auto`: there is no earlier checkpoint"
    if earlier:
        goes_on = f"continue with `--resume` from `{earlier[0].name}`, which is intact"
    if number in DISK_FULL:
        free = shutil.disk_usage(final.parent).free
        over = ": a quota or limit leaves less" if free >= needed else ""
        return CheckpointError(
            f"the disk is full: the checkpoint `{final}` takes {in_bytes(needed)}, and "
            f"{in_bytes(free)} are free{over}",
            hint=f"free up disk space, then {goes_on}"
            + ("; a smaller `run.keep` keeps fewer" if len(earlier) > 1 else ""),
        )
    return CheckpointError(
        f"the checkpoint `{final}` cannot be written: {os.strerror(number)}",
        hint=goes_on,
    )


def _point(root: Path, name: str, target: Path) -> None:
    """Let a link lead to a checkpoint; where no links can be made, a file with its name does."""
    link, draft = root / name, root / f".tmp-{name}"
    remove(draft)
    try:
        draft.symlink_to(target.name)
    except OSError:
        write_safely(draft, f"{target.name}\n")
    if link.is_dir() and not link.is_symlink():  # a copy made of a link
        meta = read_meta(link)
        step = None if isinstance(meta, str) else meta.get("step")
        own = root / f"{PREFIX}{step:07d}" if isinstance(step, int) else None
        if own is None or own.exists():
            shutil.rmtree(link)
        else:
            link.replace(own)
    os.replace(draft, link)
    sync(root)


def _prune(root: Path, step: int, keep: int) -> None:
    """Remove old checkpoints. Later ones are of a training that went back; it will replace them."""
    pointed = {one.name for name in ("last", "best") if (one := pointed_at(root, name))}
    past = [one for one in kept_in(root) if int(one.name.removeprefix(PREFIX)) <= step]
    for old in past[keep:]:
        if old.name not in pointed:
            shutil.rmtree(old, ignore_errors=True)
