"""glibc settings with which a CPU training reuses freed memory in the next step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_USUAL = {  # the defaults, with thresholds where glibc's own rule puts them once blocks are large
    _MMAP_MAX: 1 << 16,
    _TRIM_THRESHOLD: 64 << 20,
    _MMAP_THRESHOLD: 32 << 20,
}
_CHOSEN_BY_USER = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "GLIBC_TUNABLES",
)


@contextmanager
def kept_memory(device: torch.device) -> Iterator[bool]:
    """Reuse freed memory for the next tensor instead of returning it to the system.

    By default glibc maps every block of more than 32 MiB again. The system then zeroes each of its
    pages on first write, which takes 5 % of a step of ViT-B with 4 clips. Peak memory stays within
    2 %. At the end of the block free memory is returned.

    Args:
        device: Of the model; this matters only on a CPU.

    Yields:
        Whether it was done: not without glibc, and not if the environment sets its options.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None or any(name in os.environ for name in _CHOSEN_BY_USER):
        yield False
        return
    done = all([library.mallopt(option, value) for option, value in _KEEP.items()])
    try:
        yield done
    finally:
        for option, usual in _USUAL.items():
            library.mallopt(option, usual)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process, if it is glibc."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    known = all(hasattr(library, name) for name in ("mallopt", "malloc_trim"))
    return library if known and hasattr(library, "gnu_get_libc_version") else None
