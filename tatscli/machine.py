"""The machine: how many cores and how much memory it and its containers leave to this process, and
files that lie in memory.

A file in memory is `memfd_create`'s on Linux, which does not depend on the size of `/dev/shm`;
elsewhere it is a temporary file that is deleted at once.
"""

from __future__ import annotations

import ctypes
import errno
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path, PurePosixPath

GB = 10**9
"""Bytes, wherever memory is counted in GB."""


_PR_SET_PDEATHSIG = 1  # of prctl(2)


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process and its children may keep busy, at least 1.

    That is the number it is bound to (`taskset`, SLURM), or the processor time that each control
    group above it allows, where that is less, as in a container with `--cpus`.

    Args:
        root: Where `proc` and `sys` are found.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(one) for one in _quotas(root))]))


def outlived_by(parent: int, number: int) -> bool:
    """Have the kernel send this process a signal should its parent be killed; Linux can.

    To be called by the main thread of the parent's child: the kernel goes by the thread that
    started it.

    Args:
        parent: The parent's process id.
        number: The signal.

    Returns:
        Whether the parent is still there.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    return os.getppid() == parent


def end_with_parent() -> None:
    """End this process, whatever it is at, as soon as the one that started it is gone.

    For processes of `multiprocessing`, however they start.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process and its children may still take, as things stand.

    That is the least of what the machine has available and of what each control group above this
    process (version 1 or 2) leaves of its limit. File cache that can be dropped counts as free.

    Args:
        root: Where `proc` and `sys` are found.

    Returns:
        None where the system does not say, as on macOS.
    """
    left = [*_of_machine(root), *_of_control_groups(root)]
    return max(0, min(left)) if left else None


def unnamed_file(purpose: str, size: int) -> int:
    """Return the descriptor of a new file without a name, filled with zeros that take no room.

    The kernel frees it with the last process that has it open, however that one ends.

    Args:
        purpose: Shown by the kernel where it lists open files.
        size: In bytes.

    Raises:
        OSError: If there is no room to be had.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create(purpose)
    else:
        if size > shutil.disk_usage(tempfile.gettempdir()).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _of_machine(root: Path) -> Iterator[int]:
    kilobytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if kilobytes is not None:
        yield 1024 * kilobytes


def _of_control_groups(root: Path) -> Iterator[int]:
    """Yield the memory that every group leaves, from that of this process up to the root."""
    for group, version in _groups(root, "memory"):
        if version == 2:
            limits, used = ["memory.max", "memory.high"], "memory.current"
            cached = "inactive_file"
        else:
            limits, used = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
            cached = "total_inactive_file"
        taken = _number(group / used)
        if taken is None:
            continue
        taken -= _numbers(group / "memory.stat").get(cached, 0)
        for limit in limits:
            most = _number(group / limit)
            if most is not None:
                yield most - taken


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of processor time that every group allows, if it sets a limit."""
    for group, version in _groups(root, "cpu"):
        if version == 2:
            words = _text(group / "cpu.max").split()
        else:
            words = [_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield the control groups of this process that may limit something, and their version.

    Inside a container the path may be that of the host, which is not there; the container's own
    group then lies at the root.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        name = PurePosixPath(path.lstrip("/"))
        for part in (name, *name.parents):
            if not controllers:
                yield top / part, 2
            elif controller in controllers.split(","):
                yield top / controller / part, 1


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Read a file that holds one number; `max`, the absence of a limit, is none."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _numbers(path: Path) -> dict[str, int]:
    """Read a file with a name and a number on each line."""
    lines = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
