"""The run that `--overwrite` replaces: set aside until the new one has its first checkpoint.

    runs/ucf101/replaced/    all of the old run; the first checkpoint removes it

If the new run fails before that, the old one is put back; what the new one had logged goes to
`failed` in it. A kill at any moment leaves a state that `recover` can tell and finish.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tatscli.console import Reporter
from tatscli.engine.bad_batch import FOLDER as BAD_STEP
from tatscli.engine.folders import REPLACED, has_checkpoints
from tatscli.files import remove
from tatscli.lock import LOCK

FAILED = "failed"
_MOVING = ".replacing"  # the old run while its files move, in whichever direction


def content(folder: Path) -> list[Path]:
    """Return what lies in a run folder, besides its lock and a run that is being replaced."""
    if not folder.is_dir():
        return []
    return [one for one in folder.iterdir() if one.name not in (LOCK, REPLACED, _MOVING)]


def recover(folder: Path) -> None:
    """Finish what a kill interrupted: files that were moving are put back, and a replaced run
    beside a new checkpoint is removed."""
    if (folder / _MOVING).is_dir():
        _empty(folder / _MOVING, folder)
    if has_checkpoints(folder):
        remove(folder / REPLACED)


def set_aside(folder: Path) -> None:
    """Make room for a new run.

    A run without checkpoints is removed at once, and so is a new one whose predecessor is still set
    aside.
    """
    if not has_checkpoints(folder):
        for one in content(folder):
            remove(one)
        return
    (folder / _MOVING).mkdir()
    for one in content(folder):
        one.replace(folder / _MOVING / one.name)
    (folder / _MOVING).replace(folder / REPLACED)


def put_back(folder: Path) -> str | None:
    """Put a replaced run back, if the new one has no checkpoint; say so."""
    old = folder / REPLACED
    if not old.is_dir() or has_checkpoints(folder):
        return None
    text = f"the new run has no checkpoint, so the one it was to replace is back in `{folder}`"
    log = folder / "metrics.jsonl"
    logged = (log.is_file() and log.stat().st_size > 0) or (folder / BAD_STEP).exists()
    remove(old / FAILED)
    if logged:
        (old / FAILED).mkdir()
        text += f"; what the new one logged is in `{folder / FAILED}`"
    for one in content(folder):
        if logged:
            one.replace(old / FAILED / one.name)
        else:
            remove(one)
    old.replace(folder / _MOVING)
    _empty(folder / _MOVING, folder)
    return text


@contextmanager
def put_back_on_failure(folder: Path, reporter: Reporter, *, main: bool) -> Iterator[None]:
    """Put a replaced run back if the block fails before the new one has a checkpoint.

    A new run that left a bad step for `tats replay` stays in its place, and the old one set aside.

    Args:
        folder: The run folder.
        reporter: Told about it.
        main: Whether this process is the one that writes.
    """
    try:
        yield
    except BaseException:
        old = folder / REPLACED
        if main and (folder / BAD_STEP).exists() and old.is_dir():
            reporter.warn(
                f"the run that was to be replaced is kept in `{old}`; `--resume` puts it back"
            )
        elif main and (said := put_back(folder)) is not None:
            reporter.warn(said)
        raise


def _empty(source: Path, folder: Path) -> None:
    for one in source.iterdir():
        one.replace(folder / one.name)
    source.rmdir()
