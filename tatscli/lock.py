"""One run at a time in a folder, with a kernel lock that does not outlive a killed process."""

from __future__ import annotations

import atexit
import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from tatscli.console import Reporter
from tatscli.errors import DataError

LOCK = ".lock"
_TRIES = 1000
_PAUSE = 0.05  # seconds between two looks at a lock that is waited for
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def locked(file: Path, what: Path, reporter: Reporter, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock `file`, which names its holder, and remove it at the end.

    Args:
        file: The lock, in a folder that exists.
        what: The path it protects, for messages.
        reporter: Warns where the file system does not support file locks.
        wait: Seconds to wait for another process that holds it.

    Raises:
        DataError: Another process holds it.
        OSError: The file cannot be written.
    """
    from filelock import FileLock, Timeout  # here, so that `--help` does not load it

    # No fallback to a lock file: it would outlive a killed run.
    lock = FileLock(file, blocking=False, fallback_to_soft=False, on_acquired=_sign)
    lockless, tries, until = False, 0, time.monotonic() + wait
    owner = os.getpid()

    def give_back() -> None:
        if os.getpid() != owner:
            return
        with suppress(OSError):
            if not (lock.is_locked or lockless):  # interrupted after making the file, or refused
                lock.acquire()
            # While it is held: whoever waits for this file finds out that it has lost its name.
            file.unlink()
        lock.release()
        atexit.unregister(give_back)

    # A Ctrl-C between two steps of a `with` statement skips its end; that of the program is left.
    atexit.register(give_back)
    try:
        while not (lock.is_locked or lockless):
            try:
                lock.acquire()
            except Timeout:
                if time.monotonic() < until:
                    time.sleep(_PAUSE)
                    continue
                with suppress(FileNotFoundError):  # its holder removed it just now: take a new one
                    raise DataError(
                        f"`{what}` is in use by {_holder(file)}",
                        "wait until that run has ended, or stop it: its finished work is kept",
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
                    f"the file system of `{what}` does not support file locks: make sure that no "
                    "other run uses it"
                )
        yield
    finally:
        give_back()


def is_held(file: Path) -> bool | None:
    """Whether some process holds the lock `file` now; None if unknown.

    The file is locked for an instant, shared, to find out.
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
    """Write the holder into the lock that was just taken."""
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(owner).encode() + b"\n")


def _holder(file: Path) -> str:
    """Describe the holder of the lock.

    Raises:
        FileNotFoundError: The lock is gone.
    """
    try:
        owner = json.loads(file.read_bytes())
        return f"process {owner['pid']} on `{owner['host']}`, since {owner['started']}"
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError):  # between locking and signing
        return "another run that has just started"
