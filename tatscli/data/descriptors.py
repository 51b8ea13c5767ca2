"""How many files a process may have open, and whether loader workers fit among them."""

from __future__ import annotations

import os

from tatscli.errors import DataError
from tatscli.files import open_files_allowed

_PER_WORKER = 3  # what stays open here for each: its connection, and two ends that watch it
_PASSING = 5  # while one starts, and while a batch is on its way


def refuse_too_few_files(workers: int) -> None:
    """Refuse to start more loader workers than the limit on open files has room for.

    Where a process finds that out half way, what it says ends in an `EOFError` of another one.

    Raises:
        DataError: If so.
    """
    allowed = open_files_allowed()
    used = None if allowed is None else _open_files(below=allowed)
    if allowed is None or used is None:
        return
    needed = used + _PER_WORKER * workers + _PASSING
    if needed > allowed:
        raise DataError(
            f"{workers} loader workers need about {needed} open files, and this process may have "
            f"{allowed}",
            f"raise the limit, such as by `ulimit -n {max(1024, 2 * needed)}`, or take fewer "
            "`data.workers`",
        )


def _open_files(below: int) -> int | None:
    """Count the open files of this process whose numbers are below the limit; None where the system
    does not tell."""
    try:
        return sum(int(number) < below for number in os.listdir("/proc/self/fd")) - 1
    except OSError:
        return None
