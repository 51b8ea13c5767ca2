"""One run at a time on a store: a lock of the kernel's, which a killed run cannot leave behind."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from tatscli.console import Reporter
from tatscli.errors import DataError

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def locked(file: Path, what: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the lock `file`, which says who does, and remove it at the end.

    Args:
        file: The lock, in a folder that exists.
        what: What it protects, for messages.
        reporter: Warns where the file system knows no locks.

    Raises:
        DataError: Another process holds it.
        OSError: The file cannot be written.
    """
    descriptor = _take(file, what, reporter)
    try:
        yield
    finally:
        # While it is still held: whoever waits for this file finds out that it has lost its name.
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def _take(file: Path, what: Path, reporter: Reporter) -> int:
    """Open, lock and sign the file; return its descriptor."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_named(descriptor, file):  # its holder removed it just now: take a new one
                os.close(descriptor)
                continue
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise DataError(
                f"`{what}` is in use by {holder}",
                "wait until that run has ended, or stop it: what it has finished is kept",
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise
            reporter.warn(
                f"the file system of `{what}` knows no locks: see to it that no second run uses it"
            )
        started = datetime.now().astimezone().isoformat(" ", "seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode() + b"\n")
        return descriptor


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """Say in words who signed the lock."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['pid']} on `{owner['host']}`, since {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):  # between locking and signing
        return "another run, which has just begun"
