"""The run folder: the product of a training. `recipe.yaml`, `run.json`, `metrics.jsonl`,
`checkpoints/`."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tatscli import __version__
from tatscli.errors import CheckpointError, UsageError
from tatscli.files import write_safely


def open_run(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Prepare the folder of a run.

    Args:
        folder: The run folder.
        resume: Continue what is there.
        overwrite: Delete what is there.

    Raises:
        UsageError: If the folder is not empty and neither was asked for, or both were.
        CheckpointError: If there is nothing to resume.
    """
    if resume and overwrite:
        raise UsageError("`--resume` and `--overwrite` exclude each other")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is a file, not a run folder", hint="choose another `--out`")
    full = folder.is_dir() and any(folder.iterdir())
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise CheckpointError(
                f"`{folder}` is no run that could be resumed",
                hint="leave out `--resume` to start it",
            )
    elif full and not overwrite:
        raise UsageError(
            f"run folder `{folder}` is not empty",
            hint="continue it with `--resume`, replace it with `--overwrite`, "
            "or name another `--out`",
        )
    elif full:
        if not (folder / "recipe.yaml").is_file():
            raise UsageError(
                f"`{folder}` does not look like a run, so `--overwrite` leaves it alone",
                hint="name another `--out`, or delete the folder yourself",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


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


def write_run_json(folder: Path, facts: dict[str, Any]) -> None:
    """Write `run.json`; a resumed run keeps the descriptions of its earlier sessions."""
    path = folder / "run.json"
    earlier: list[dict[str, Any]] = []
    if path.exists():
        previous = json.loads(path.read_text(encoding="utf-8"))
        earlier = [*previous.pop("earlier", []), previous]
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
