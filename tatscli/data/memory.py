"""How much memory is free: what the machine has left, and what its containers leave of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


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


def _of_machine(root: Path) -> Iterator[int]:
    kilobytes = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if kilobytes is not None:
        yield 1024 * kilobytes


def _of_control_groups(root: Path) -> Iterator[int]:
    """Yield what every group leaves, from that of this process up to the root.

    Inside a container the path may be that of the host, which is not there; the container's own
    group then lies at the root.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        name = PurePosixPath(path.lstrip("/"))
        for part in (name, *name.parents):
            if not controllers:  # version 2
                group = top / part
                limits, used = ["memory.max", "memory.high"], "memory.current"
                cached = "inactive_file"
            elif "memory" in controllers.split(","):
                group = top / "memory" / part
                limits, used = ["memory.limit_in_bytes"], "memory.usage_in_bytes"
                cached = "total_inactive_file"
            else:
                break
            taken = _number(group / used)
            if taken is None:
                continue
            taken -= _numbers(group / "memory.stat").get(cached, 0)
            for limit in limits:
                most = _number(group / limit)
                if most is not None:
                    yield most - taken


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
