"""Atomic writes: a kill at any moment leaves either the old content or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tatscli.errors import UsageError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_ERRORS = DISK_FULL | {errno.EIO, errno.EROFS, errno.ESTALE}
"""Write errors that are the machine's fault and not a bug."""
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


def unwritable(path: Path) -> str | None:
    """Return why no file or folder can be created at `path`; None if it can.

    Missing folders are not created yet: the nearest existing one is tried.
    """
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        reason = "it is not a folder" if folder.is_file() else error.strerror
        return f"cannot write `{path}`: no file can be created in `{folder}`: {reason}"


def refuse_unwritable(path: Path, hint: str | None = None) -> None:
    """Refuse, before any work is done, a path where no file or folder can be created.

    Raises:
        UsageError: If so.
    """
    if reason := unwritable(path):
        raise UsageError(reason, hint=hint)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, to replace an existing file without `overwrite`.

    Raises:
        UsageError: If `path` exists, and `overwrite` is not set.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"`{path}` exists", hint="`--overwrite` replaces it")


def write_safely(path: Path, content: bytes | str) -> None:
    """Write to a temporary file in the same folder, sync and rename it.

    Text is written as UTF-8, with escapes as in JSON for bytes of file names that are not UTF-8.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # write errors, unlike open errors, do not name the file
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, synced file or folder to its final name, and sync the name."""
    temporary.replace(path)
    sync(path.parent)


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give a path beside `target` for a new file or folder, which replaces `target` at the end.

    What was at `target` stays until then, and after an error; the draft is removed. A kill between
    the two renames leaves the old folder beside its place, and the next draft restores it.
    """
    draft, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not target.exists():
        old.replace(target)
    for stale in (draft, old):
        remove(stale)
    try:
        yield draft
        for file in [draft, *draft.rglob("*")]:
            if file.is_file() and not file.is_symlink():
                sync(file)
        if target.is_dir():  # a rename replaces a file, and no folder that holds something
            target.replace(old)
        publish(draft, target)
    finally:
        remove(draft)
        if old.exists() and not target.exists():
            old.replace(target)
        remove(old)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_bytes(count: int) -> str:
    """Format a number of bytes with three digits: `1.25 MB`, `0.512 GB`, `340 GB`."""
    value, unit = (count / 1e9, "GB") if count >= 1e8 else (count / 1e6, "MB")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def open_files_allowed() -> int | None:
    """Return how many files this process may have open; None where there is no such limit."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def system_error(error: BaseException) -> int | None:
    """Return the errno of an error of the system; None for other errors."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":  # has it only in its text
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    return None


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of a file; for several, that of their digests in the order of names."""
    digests = [sha256(path) for path in sorted(paths)]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
