"""Reading files of weights without running code: safetensors, or files of `torch.save`."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tatscli.errors import CheckpointError
from tatscli.weights.paths import CONFIG

Allowed = Sequence[type | tuple[Any, str]]

NAMESPACE: Allowed = (argparse.Namespace,)
"""Official files store their training arguments; such an object runs no code."""

WRAPPERS = ("model", "module", "state_dict")
"""Keys under which files keep their tensors; DeepSpeed's is `module`."""

PREFIXES = ("backbone.", "module.", "_orig_mod.")
"""Prefixes that wrapped models add to every name, in any order and number."""


class _Inert:
    """Replaces a class that a file names and whose code must not run."""


LIGHTNING: Allowed = (
    (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    argparse.Namespace,
)
"""Classes in Lightning's checkpoints, which are replaced by a stand-in."""


def read_file(path: Path, *, called: str, allowed: Allowed = NAMESPACE) -> Any:
    """Read a file: a dict of tensors from safetensors, or the content of a `torch.save` file.

    Args:
        path: The file.
        called: Name of the file in messages.
        allowed: Classes other than tensors that the file may contain.

    Raises:
        CheckpointError: If it is missing, damaged, or would run code when read.
    """
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(called, str(error)) from error
    except EOFError as error:
        raise CheckpointError(f"`{called}` cannot be read: it is cut short") from error
    except Exception as error:  # the parsers raise anything over damaged bytes
        if isinstance(error, OSError) and error.filename is not None:
            raise CheckpointError(f"`{called}` cannot be read: {error.strerror}") from error
        if path.suffix != ".safetensors":  # torch's messages, such as `101`, do not help
            raise _not_weights(called) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"`{called}` cannot be read: {reason}") from error


def read_weights(path: Path, *, key: str, allowed: Allowed = LIGHTNING) -> dict[str, Tensor]:
    """Read the tensors of a file that a recipe names.

    Args:
        path: The file.
        key: Recipe key that names it, for messages.
        allowed: Classes other than tensors that the file may contain.

    Raises:
        CheckpointError: If it is missing, damaged, would run code, or has no tensors.
    """
    called = f"{key}: {path}"
    return tensors_in(read_file(path, called=called, allowed=allowed), called=called)


def tensors_in(found: Any, *, called: str) -> dict[str, Tensor]:
    """Return the tensors in the content of a file, whichever key they are under.

    Raises:
        CheckpointError: If there are none.
    """
    while isinstance(found, dict):
        wrapped = [found[key] for key in WRAPPERS if isinstance(found.get(key), dict)]
        if not wrapped:
            break
        found = wrapped[0]
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {str(name): one for name, one in entries if isinstance(one, Tensor)}
    if not tensors:
        keys = f": its keys are {_some(list(found))}" if isinstance(found, dict) and found else ""
        raise CheckpointError(f"`{called}` has no tensors{keys}")
    return tensors


def bare_names(tensors: dict[str, Tensor], *, called: str) -> dict[str, Tensor]:
    """Strip the prefixes of wrapped models from names.

    Raises:
        CheckpointError: If two tensors then have the same name.
    """
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while short.startswith(PREFIXES):
            short = short.removeprefix(next(one for one in PREFIXES if short.startswith(one)))
        if short in bare:
            raise CheckpointError(
                f"`{called}` has two tensors called `{short}` after stripping prefixes, one of "
                f"them `{name}`",
                hint="it holds two models: save only the one you want",
            )
        bare[short] = tensor
    return bare


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If the file is not one.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"`{path}` is not a JSON object but a {type(found).__name__}")
    return found


def read_folder(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """Read the tensors of a folder of `transformers` or timm, and return the files they are in.

    Raises:
        CheckpointError: If there are none, or files or tensors that the index lists are missing.
    """
    files, listed = _files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= tensors_in(read_file(file, called=str(file)), called=str(file))
    if lacking := sorted(listed - tensors.keys()):
        raise CheckpointError(
            f"the files in `{folder}` lack {len(lacking)} of {len(listed)} tensors that their "
            f"index lists, first `{lacking[0]}`",
            hint="the download is incomplete",
        )
    return tensors, files


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """Return a folder's files of weights, and the tensors that its index lists."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not places:
                raise CheckpointError(f"`{index}` has no `weight_map`")
            names = sorted({str(one) for one in places.values()})
            for name in names:
                _refuse_missing_shard(folder, name, index, len(names))
            return [folder / name for name in names], set(places)
        if single.is_file():
            return [single], set()
    there = sorted(one.name for one in folder.iterdir() if one.is_file() and one.name != CONFIG)
    raise CheckpointError(
        f"`{folder}` has a `{CONFIG}` and no `model.safetensors`",
        hint=f"it has {_some(there)}" if there else "download the weights as well",
    )


def _refuse_missing_shard(folder: Path, name: str, index: Path, count: int) -> None:
    if Path(name).name != name:  # nothing outside the folder is read
        raise CheckpointError(f"`{index}` names `{name}`, which is not a file beside it")
    if not (folder / name).is_file():
        raise CheckpointError(
            f"`{folder}` lacks `{name}`, one of {count} files of weights",
            hint="the download is incomplete",
        )


def _unsafe(called: str, said: str) -> CheckpointError:
    """Distinguish a pickle that would run code from a file that torch did not write."""
    if "nsupported operand" in said or not re.search("GLOBAL|global|class", said):
        return _not_weights(called)
    named = re.search(r"GLOBAL ([\w.]+)", said)
    what = f", `{named[1]}`" if named else ""
    return CheckpointError(
        f"`{called}` holds more than tensors{what}; it is not read, since that could run code",
        hint="save only its state dict, as safetensors",
    )


def _not_weights(called: str) -> CheckpointError:
    return CheckpointError(
        f"`{called}` is damaged or not a file of weights: torch cannot read it",
        hint="supported are files written by `torch.save`, and .safetensors",
    )


def _some(names: list[Any]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
