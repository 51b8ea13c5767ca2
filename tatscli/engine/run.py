"""The run folder: the product of a training. `recipe.yaml`, `run.json`, `metrics.jsonl`,
`checkpoints/`."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tatscli import __version__
from tatscli.console import Reporter, warn_once
from tatscli.engine.folders import has_checkpoints
from tatscli.engine.replaced import content, put_back, recover, set_aside
from tatscli.errors import CheckpointError, DataError, UsageError
from tatscli.files import write_safely
from tatscli.jsonfiles import read_object
from tatscli.lock import LOCK, locked


@contextmanager
def held_run(folder: Path, reporter: Reporter, *, main: bool) -> Iterator[None]:
    """Keep a second training out of a run folder; the processes of one training share it.

    Args:
        folder: The run folder; it is made.
        reporter: Warns where the file system does not support file locks.
        main: Whether this process is the one that writes.

    Raises:
        DataError: If another training is at work in it.
    """
    if not main or (folder.exists() and not folder.is_dir()):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, folder, reporter):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # if it is still empty: nothing was begun


def open_run(
    folder: Path, *, resume: bool, overwrite: bool, warn: Callable[[str], None] = warn_once
) -> None:
    """Prepare the folder of a run.

    Args:
        folder: The run folder.
        resume: Continue what is there.
        overwrite: Replace what is there; it is set aside until there is a checkpoint.
        warn: Told if a run that was being replaced is put back.

    Raises:
        UsageError: If the folder is not empty and neither was asked for, or both were.
        CheckpointError: If there is nothing to resume.
    """
    if resume and overwrite:
        raise UsageError("`--resume` and `--overwrite` cannot be combined")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is a file, not a run folder", hint="choose another `--out`")
    recover(folder)
    said = None if overwrite else put_back(folder)
    if said is not None:
        warn(said)
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise CheckpointError(
                f"`{folder}` is not a resumable run",
                hint="leave out `--resume`, or take `--resume auto`, to start it",
            )
    elif content(folder) and not overwrite:
        raise UsageError(
            f"run folder `{folder}` is not empty",
            hint="continue it with `--resume`, replace it with `--overwrite`, "
            "or name another `--out`",
        )
    elif content(folder):
        if not (folder / "recipe.yaml").is_file():
            raise UsageError(
                f"`{folder}` does not look like a run, so `--overwrite` leaves it alone",
                hint="name another `--out`, or delete the folder yourself",
            )
        set_aside(folder)
    folder.mkdir(parents=True, exist_ok=True)


def resume_or_start(folder: Path) -> tuple[bool, bool]:
    """Work out what `--resume auto` means for a run folder.

    Returns:
        `resume`, where there are checkpoints, and `overwrite`, where a run was begun there and
        stopped before its first one; neither where nothing is there yet.
    """
    if has_checkpoints(folder):
        return True, False
    return False, (folder / "recipe.yaml").is_file()


def describe_run(**facts: Any) -> dict[str, Any]:
    """Return what `run.json` says: versions, commit, machine, command, and the given facts."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "tats": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        **facts,
    }


def write_run_json(
    folder: Path, facts: dict[str, Any], warn: Callable[[str], None] = warn_once
) -> None:
    """Write `run.json`; a resumed run keeps the descriptions of its earlier sessions.

    One that cannot be read any more is put aside as `run.damaged.json`.
    """
    path = folder / "run.json"
    earlier: list[Any] = []
    try:
        previous = read_object(path) or {}
    except DataError as error:
        aside = path.replace(folder / "run.damaged.json")
        warn(f"{error.message}; it is `{aside}` now, and the run is described anew")
    else:
        before = previous.pop("earlier", [])
        earlier = [*(before if isinstance(before, list) else []), *([previous] if previous else [])]
    write_safely(path, json.dumps({**facts, "earlier": earlier}, indent=1) + "\n")


def _commit() -> str | None:
    """Return the commit of the source tree this package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
