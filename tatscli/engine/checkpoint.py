"""Checkpoints: folders of safetensors with a `meta.json`, written whole or not at all.

    checkpoints/step-0000100/{model,masker,optimizer}.safetensors  meta.json
    checkpoints/last -> step-0000100        checkpoints/best -> step-0000080

A folder is filled under a temporary name, synced and renamed; the links are swapped by a rename
too. Random numbers are a function of the step (`engine/rng.py`), so no generator state is kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tatscli.engine.part import Part
from tatscli.errors import CheckpointError
from tatscli.files import publish, sha256, sync

FORMAT = 2
READABLE = (1, 2)  # 1 kept no copy of a sampler's last good state
PREFIX = "step-"


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
        """Return the SHA-256 of the model file: the identity of the weights in results."""
        return sha256(self.path / "model.safetensors")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What people should know of weights that another program wrote; nothing of ours."""
        return ()


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
    old ones.

    Args:
        folder: The run folder.
        step: Optimiser steps done.
        tensors: File stem to named tensors.
        meta: What `meta.json` says beside step and format.
        keep: Numbered checkpoints to keep; those behind `last` and `best` always stay.
        best: Whether this is the best one so far.
    """
    from safetensors.torch import save_file

    root = folder / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    final = root / f"{PREFIX}{step:07d}"
    draft = root / f".tmp-{final.name}"
    draft.mkdir()
    strings = {"format": str(FORMAT), "kind": str(meta["kind"]), "step": str(step)}
    for part, named in tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
        save_file(plain, draft / f"{part}.safetensors", metadata=strings)
    text = json.dumps({"format": FORMAT, "step": step, **meta}, indent=1, ensure_ascii=False)
    (draft / "meta.json").write_text(text, encoding="utf-8")
    for file in draft.iterdir():
        sync(file)
    if final.exists():
        shutil.rmtree(final)
    publish(draft, final)
    _point(root / "last", final)
    if best:
        _point(root / "best", final)
    _prune(root, keep)
    return final


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
            hint="continue the run with the version that began it, or start anew with `--init`",
        ) from error


def find_checkpoint(path: Path, *, prefer: str = "last") -> Checkpoint:
    """Return the checkpoint that `path` means: a checkpoint folder, or a run's `prefer`, else its
    last.

    Raises:
        CheckpointError: If there is none, or it was written by a newer format.
    """
    for candidate in (path, path / "checkpoints" / prefer):
        if (candidate / "meta.json").is_file():
            meta = json.loads((candidate / "meta.json").read_text(encoding="utf-8"))
            if meta.get("format") not in READABLE:
                raise CheckpointError(
                    f"`{candidate}` has checkpoint format `{meta.get('format')}`; "
                    f"this version reads {' and '.join(map(str, READABLE))}",
                    hint="install the version of tats that wrote it: see `run.json`",
                )
            return Checkpoint(candidate.resolve(), meta)
    if not path.exists():
        raise CheckpointError(
            f"`{path}` does not exist",
            hint="give a run folder such as `runs/ucf101`, or one of its checkpoints",
        )
    chosen = path / "checkpoints" / prefer
    if chosen.is_symlink() and not (chosen / "meta.json").is_file():
        lacking = "its `meta.json`" if chosen.exists() else f"`{os.readlink(chosen)}`"
        raise CheckpointError(
            f"the `{prefer}` checkpoint of `{path}` is damaged: {lacking} is missing",
            hint=f"other checkpoints lie in `{chosen.parent}`, and may be named themselves",
        )
    if (path / "checkpoints" / "last").exists():
        raise CheckpointError(
            f"`{path}` has no `{prefer}` checkpoint: nothing was scored while it trained",
            hint="take the last one, or train with `finetune.val_split`",
        )
    raise CheckpointError(
        f"`{path}` holds no checkpoint",
        hint="give a run folder (it has a `checkpoints` folder), one of its checkpoints, or "
        "weights of others: a folder with `config.json` and its weights, a .pth or .safetensors",
    )


def _point(link: Path, target: Path) -> None:
    draft = link.with_name(f".tmp-{link.name}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target.name)
    os.replace(draft, link)


def _prune(root: Path, keep: int) -> None:
    linked = {(root / name).resolve() for name in ("last", "best") if (root / name).exists()}
    numbered = sorted(path for path in root.glob(f"{PREFIX}*") if path.is_dir())
    for old in numbered[:-keep]:
        if old.resolve() not in linked:
            shutil.rmtree(old)
