"""Checkpoints: folders of safetensors with a `meta.json`, written whole or not at all.

    checkpoints/step-0000100/{model,masker,optimizer}.safetensors  meta.json
    checkpoints/last -> step-0000100        checkpoints/best -> step-0000080

`engine/keeping.py` writes them. A checkpoint of a run is found whatever became of the links: copied
or zipped, they may be folders or small files with the name of what they meant. Random numbers are
a function of the step (`engine/rng.py`), so no generator state is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.console import warn_once
from tatscli.engine.folders import (
    damage_of,
    has_checkpoints,
    kept_in,
    pointed_at,
    read_meta,
    step_in,
)
from tatscli.engine.part import Part
from tatscli.errors import CheckpointError
from tatscli.files import sha256
from tatscli.recipe.schema import Recipe
from tatscli.recipe.stored import read_stored
from tatscli.tensors import digest_of_file

FORMAT = 2
READABLE = (1, 2)  # 1 kept no copy of a sampler's last good state


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: Its folder.
        meta: `meta.json`: kind, step, recipe, class names, versions ...
    """

    path: Path
    meta: dict[str, Any]

    @property
    def kind(self) -> str:
        """`pretrained`, `finetuned` or `tokenizer`."""
        return str(self.meta["kind"])

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.meta["step"])

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained with.

        Raises:
            CheckpointError: If this version cannot read it.
        """
        return read_stored(
            self.meta.get("recipe"),
            file=self.path / "meta.json",
            wrote=self.meta.get("tats"),
            warn=warn_once,
        )

    def has(self, part: str) -> bool:
        """Whether there is a file of a part."""
        return (self.path / f"{part}.safetensors").is_file()

    def tensors(self, part: str) -> dict[str, Tensor]:
        """Read a part: `model`, `masker`, `optimizer` ...

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.path / f"{part}.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot read `{self.path / part}.safetensors`: {error}"
            ) from error

    def digest(self) -> str:
        """Return the SHA-256 of the model's tensors (`digest_of`): equal weights have equal ones,
        whatever file they are in. It is `checkpoint_sha256` in results.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        path = self.path / "model.safetensors"
        try:
            return digest_of_file(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"cannot read `{path}`: {error}") from error

    def file_digest(self) -> str:
        """Return the SHA-256 of the model file, by which checkpoints know frozen networks."""
        return sha256(self.path / "model.safetensors")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What people should know of weights that another program wrote; nothing of ours."""
        return ()


def restore_part(name: str, part: Part, checkpoint: Checkpoint) -> None:
    """Put back what a part kept in a checkpoint; parts that keep nothing have no file.

    Raises:
        CheckpointError: If it does not fit, or the file is missing or damaged.
    """
    if not part.tensors() and not checkpoint.has(name):
        return
    tensors = checkpoint.tensors(name)
    try:
        part.load(tensors)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"`{checkpoint.path / name}.safetensors` does not fit the recipe as this version of "
            f"tats reads it: {reason}",
            hint="resume with the version that started the run, or start a new run with `--init`",
        ) from error


def find_checkpoint(
    path: Path, *, prefer: str = "last", say: Callable[[str], None] = warn_once
) -> Checkpoint:
    """Return the checkpoint that `path` means: a checkpoint folder, or a run's `prefer`, else its
    last.

    Where the last one of a run is damaged, the newest intact one is returned, and `say` is told. A
    checkpoint that `path` itself names, and a run's best, have no stand-in.

    Args:
        path: A run folder or a checkpoint.
        prefer: Which one of a run, `last` or `best`.
        say: Told what is damaged.

    Raises:
        CheckpointError: If there is none, it is damaged, or it was written by a newer format.
    """
    if _is_checkpoint(path):
        named = pointed_at(path.parent, path.name) or path
        found = _open(named)
        if isinstance(found, Checkpoint):
            return found
        raise CheckpointError(
            f"the checkpoint `{path}` is damaged: {found}", hint=_others(path.parent, named)
        )
    root = path / "checkpoints"
    if not root.is_dir():
        if not path.exists():
            raise CheckpointError(
                f"`{path}` does not exist",
                hint="give a run folder such as `runs/ucf101`, or one of its checkpoints",
            )
        raise CheckpointError(
            f"`{path}` holds no checkpoint",
            hint="give a run folder (it has a `checkpoints` folder), one of its checkpoints, "
            "or weights of others: a folder with `config.json` and its weights, a .pth or "
            ".safetensors",
        )
    return _best_of(path) if prefer == "best" else _last_of(path, say)


def _last_of(path: Path, say: Callable[[str], None]) -> Checkpoint:
    root = path / "checkpoints"
    chosen = pointed_at(root, "last")
    numbered = kept_in(root)
    # A link says which is the last. A folder in its place is a copy, perhaps an old one.
    copies = [root / name for name in ("last", "best") if (root / name).is_dir()]
    linked = [chosen] if chosen is not None and chosen not in copies else []
    damaged: list[tuple[Path, str]] = []
    seen = set[Path]()
    intact: list[Checkpoint] = []
    for folder in (*linked, *numbered, *copies):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        found = _open(folder)
        if isinstance(found, str):
            damaged.append((folder, found))
            continue
        if folder in linked:
            return found
        intact.append(found)
    if not intact:
        if damaged:
            raise _all_damaged(path, damaged)
        raise CheckpointError(
            f"`{path}` holds no checkpoint: it stopped before its first",
            hint="start it again with `--overwrite`; `run.save_every` sets how often it saves",
        )
    newest = max(intact, key=lambda one: one.step)
    for folder, problem in damaged:
        step = step_in(folder.name)
        if folder in linked or step is None or step > newest.step:
            say(
                f"the checkpoint `{folder}` is damaged: {problem}; "
                f"using that of step {newest.step} instead"
            )
    return newest


def _all_damaged(path: Path, damaged: list[tuple[Path, str]]) -> CheckpointError:
    """Name every checkpoint of a run with what is wrong with it."""
    hint = "start the run again with `--overwrite`, or restore a checkpoint from a backup"
    if len(damaged) == 1:
        return CheckpointError(
            f"the only checkpoint of `{path}` is damaged: {_said(*damaged[0])}", hint
        )
    listed = "; ".join(f"`{folder.name}`: {problem}" for folder, problem in damaged)
    return CheckpointError(
        f"all {len(damaged)} checkpoints of `{path}` are damaged: {listed}", hint
    )


def _best_of(path: Path) -> Checkpoint:
    root = path / "checkpoints"
    chosen = pointed_at(root, "best")
    if chosen is None:
        if not has_checkpoints(path):
            raise CheckpointError(f"`{path}` holds no checkpoint")
        raise CheckpointError(
            f"`{path}` has no `best` checkpoint: nothing was scored while it trained",
            hint="take the last one, or train with `finetune.val_split`",
        )
    found = _open(chosen)
    if isinstance(found, Checkpoint):
        return found
    raise CheckpointError(
        f"the `best` checkpoint of `{path}` is damaged: {_said(chosen, found)}",
        hint=_others(root, chosen),
    )


def _open(folder: Path) -> Checkpoint | str:
    """Open a checkpoint; a string says how it is damaged.

    Raises:
        CheckpointError: If it was written by a newer format.
    """
    meta = read_meta(folder)
    if isinstance(meta, str):
        return meta
    if meta["format"] not in READABLE:
        raise CheckpointError(
            f"`{folder}` has checkpoint format `{meta['format']}`; "
            f"this version reads {' and '.join(map(str, READABLE))}",
            hint="install the version of tats that wrote it: see `run.json`",
        )
    problem = damage_of(folder, meta)
    run = meta.get("recipe", {}).get("run") if problem is None else None
    if isinstance(run, dict) and run.get("keep") == 1:  # once allowed
        run["keep"] = 2
    return Checkpoint(folder.resolve(), meta) if problem is None else problem


def _is_checkpoint(path: Path) -> bool:
    """Whether a path names one checkpoint, intact or not, rather than a run."""
    if (path / "meta.json").is_file():
        return True
    beside = path.parent.name == "checkpoints" and os.path.lexists(path)
    return beside and (path.name in ("last", "best") or step_in(path.name) is not None)


def _said(folder: Path, problem: str) -> str:
    return problem.replace("it is missing", f"`{folder.name}` is missing")


def _others(root: Path, damaged: Path) -> str | None:
    """Name the newest other checkpoint in a folder, if there is an intact one."""
    for one in kept_in(root):
        with suppress(CheckpointError):  # of a newer version
            if one.resolve() != damaged.resolve() and isinstance(_open(one), Checkpoint):
                return f"`{one}` is intact: name that one instead"
    return None
