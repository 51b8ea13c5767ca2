"""One run at a time on a folder: a lock of the kernel's, which a killed run cannot leave behind."""

from __future__ import annotations

import errno
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
_TRIES = 1000
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def locked(file: Path, what: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the lock `file`, which says who does, and remove it at the end.

    Args:
        file: The lock, in a folder that exists.
        what: What it protects, for messages.
        reporter: Warns where the file system does not support locks.

    Raises:
        DataError: Another process holds it.
        OSError: The file cannot be written.
    """
    from filelock import FileLock, Timeout  # here, lest every `--help` pay for it

    # A file for a lock where the kernel has none would outlive a killed run: no fallback.
    lock = FileLock(file, blocking=False, fallback_to_soft=False, on_acquired=_sign)
    lockless, tries = False, 0
    try:
        while not (lock.is_locked or lockless):
            try:
                lock.acquire()
            except Timeout:
                with suppress(FileNotFoundError):  # its holder removed it just now: take a new one
                    raise DataError(
                        f"`{what}` is in use by {_holder(file)}",
                        "wait until that run has ended, or stop it; what it has finished is kept",
                    ) from None
                tries += 1
                if tries == _TRIES:  # nobody holds it: no file can be made here
                    raise FileNotFoundError(
                        errno.ENOENT, os.strerror(errno.ENOENT), str(file)
                    ) from None
            except OSError as error:
                lockless = error.errno in _UNSUPPORTED
                if not lockless:
                    raise
                reporter.warn(
                    f"the file system of `{what}` does not support file locks: "
                    "make sure that no other run uses it"
                )
        yield
    finally:
        with suppress(OSError):
            if not (lock.is_locked or lockless):  # interrupted after making the file, or refused
                lock.acquire()
            # While it is held: whoever waits for this file finds out that it has lost its name.
            file.unlink()
        lock.release()


def is_held(file: Path) -> bool | None:
    """Whether some process holds the lock `file` now; None where that cannot be found out.

    It looks by locking the file itself for an instant, shared.
    """
    try:
        import fcntl

        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _sign(descriptor: int) -> None:
    """Write into the lock, just taken, who holds it."""
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode() + b"\n")


def _holder(file: Path) -> str:
    """Say in words who signed the lock.

    Raises:
        FileNotFoundError: It is there no more.
    """
    try:
        owner = json.loads(file.read_bytes())
        return f"process {owner['pid']} on `{owner['host']}`, since {owner['started']}"
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError):  # between locking and signing
        return "another run, which has just begun"
