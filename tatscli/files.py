"""Writing files whole or not at all: a kill at any moment leaves the old content or the new one."""

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
"""Errors of writing that are the machine's trouble and no bug, whatever file it was."""
TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}


def unwritable(path: Path) -> str | None:
    """Say why no file or folder can be made at `path`; None where one can.

    Folders that are missing are not made yet: the nearest one that exists is tried.
    """
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        reason = "it is not a folder" if folder.is_file() else error.strerror
        return f"cannot write `{path}`: no file can be made in `{folder}`: {reason}"


def refuse_unwritable(path: Path, hint: str | None = None) -> None:
    """Refuse, before work is spent on it, a path where no file or folder can be made.

    Raises:
        UsageError: If so.
    """
    if reason := unwritable(path):
        raise UsageError(reason, hint=hint)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Find out, before work is spent on it, that something would be replaced unasked.

    Raises:
        UsageError: If `path` exists, and `overwrite` is not set.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"`{path}` exists", hint="`--overwrite` replaces it")


def write_safely(path: Path, content: bytes | str) -> None:
    """Write under a temporary name in the same folder, sync, rename.

    Text becomes UTF-8; a byte of a file's name that is not UTF-8 becomes an escape, as in JSON.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # writing, unlike opening, does not say where
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Give a finished, synced file or folder its name, and make the name itself durable."""
    temporary.replace(path)
    sync(path.parent)


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write a file or folder at, which then takes its name.

    What was at `target` is there until then, and after an error; the draft is not. A kill between
    two renames leaves an old folder beside its place, where the next draft puts it back.
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
    """Remove a file, or a folder with all it holds; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_bytes(count: int) -> str:
    """Write a number of bytes with three digits: `1.25 MB`, `0.512 GB`, `340 GB`."""
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
    """Return the number of the system's error; None of any other."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":  # has it in its text alone
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
    """Return the SHA-256 of a file; of several, that of their digests in the order of names."""
    digests = [sha256(path) for path in sorted(paths)]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
