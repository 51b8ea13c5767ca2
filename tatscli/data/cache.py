"""Decoded frames of small stores, kept in memory so that every JPEG is decoded once.

The memory is a file without a name, mapped by the process that makes it and by all loader workers,
whichever way they start. On Linux it is `memfd_create`'s, which does not depend on the size of
`/dev/shm`; elsewhere a temporary file that is deleted at once. The kernel frees it with the last
process that has it open, however that one ends. Ranks each have their own.

The file holds a flag for each frame, then the frames of one row after the other. Frames are written
first, their flags after; flags are set and looked at under a lock of the kernel's, so that whoever
sees a flag sees all bytes of the frame, on processors that reorder memory as well. Two processes
that decode the same frame at the same time write the same bytes.

Shapes: T frames, C channels, H and W pixels.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import assert_spawning
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tatscli.errors import RecipeError, TatsError
from tatscli.files import in_bytes
from tatscli.machine import GB, free_memory, unnamed_file
from tatscli.recipe.schema import Data
from tatscli.store.reader import Store

_SHARES = {"auto": 0.5, "ram": 0.8}
"""Of the free memory: the model, its moments and activations are still to come. Who says `ram` has
thought of them."""

_ALIVE: weakref.WeakSet[FrameCache] = weakref.WeakSet()
"""Those that this process has made: they share the bound."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What `data.cache` comes to for some rows of a store.

    Attributes:
        frames: Frames of the rows.
        bytes: What they take decoded, in each rank.
        limit: `data.cache_gb` in bytes.
        ranks: Processes of this machine that train together, each with memory of its own.
        reason: Why they are not kept; None where they are.
    """

    frames: int
    bytes: int
    limit: int
    ranks: int = 1
    reason: str | None = None

    @property
    def kept(self) -> int:
        """Bytes that each rank keeps: all or none."""
        return 0 if self.reason else self.bytes

    def __str__(self) -> str:
        """Say it in a line."""
        if self.reason:
            return f"none, decoded in every epoch: {self.reason}"
        each = f"{self.ranks} ranks x " if self.ranks > 1 else ""
        return f"{each}{in_bytes(self.bytes)} of at most {in_bytes(self.limit)}, decoded once"


def plan_cache(store: Store, rows: Iterable[int], data: Data, *, beside: int = 0) -> CachePlan:
    """Work out whether the frames of some rows are kept, without taking any memory.

    Args:
        store: Where the videos are.
        rows: Rows of the store that are read.
        data: The recipe's `data`.
        beside: Bytes that a rank keeps already, or is going to.

    Raises:
        RecipeError: If `data.cache` is `ram` and they cannot be kept.
    """
    records = [store.rows[row] for row in sorted(set(rows))]
    plan = CachePlan(
        frames=sum(record.frames for record in records),
        bytes=sum(record.frames * record.height * record.width * 3 for record in records),
        limit=round(data.cache_gb * GB),
        ranks=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),  # torchrun says so
    )
    if data.cache == "none":
        return replace(plan, reason="`data.cache: none`")
    if data.decode == "gpu":
        return replace(plan, reason="`data.decode: gpu`")
    if sys.platform == "win32":
        return _not_kept(plan, data, "Windows has no memory that processes can share so")
    if not plan.frames:
        return replace(plan, reason="there are no frames")
    unsized = [record.id for record in records if not record.width * record.height]
    if unsized:
        reason = f"the manifest does not say how large the pictures of `{unsized[0]}` are"
        return _not_kept(plan, data, reason)
    need = plan.ranks * (plan.bytes + beside)
    taken = f"{in_bytes(need)} of decoded frames" + (f" on {plan.ranks} ranks" * (plan.ranks > 1))
    if need > plan.limit:
        reason = f"{taken} are more than `data.cache_gb: {data.cache_gb:g}`"
        return _not_kept(plan, data, reason, enough=-(-100 * need // GB) / 100)
    free, share = free_memory(), _SHARES[data.cache]
    if free is not None and need > share * free:
        reason = f"{taken} are more than {share:.0%} of the memory that is free, {in_bytes(free)}"
        return _not_kept(plan, data, reason)
    return plan


def frames_in_memory(
    store: Store, rows: Iterable[int], data: Data
) -> tuple[FrameCache | None, CachePlan]:
    """Make the memory for the frames of some rows, where `data.cache` says so and they fit.

    What other caches of this process hold counts towards `data.cache_gb`.

    Args:
        store: Where the videos are.
        rows: Rows of the store that are read.
        data: The recipe's `data`.

    Returns:
        The cache, or None, and what it came to and why.

    Raises:
        RecipeError: If `data.cache` is `ram` and the frames cannot be kept.
    """
    rows = sorted(set(rows))
    if 10 * _held() > data.cache_gb * GB:
        gc.collect()  # a training that is over may hang in a reference cycle, and its cache with it
    plan = plan_cache(store, rows, data, beside=_held())
    if not plan.kept:
        return None, plan
    try:
        cache = FrameCache(store, rows)
    except (OSError, ValueError) as error:
        return None, _not_kept(plan, data, f"the system cannot allocate the memory: {error}")
    _ALIVE.add(cache)
    return cache, plan


def _held() -> int:
    """Return what the caches of this process take, in bytes."""
    return sum(cache.bytes for cache in _ALIVE)


class FrameCache:
    """Decoded frames of some rows, shared with the processes that are started from this one.

    Args:
        store: Where the videos are.
        rows: Rows of the store whose frames it has room for.

    Raises:
        OSError: If there is no memory to be had.

    Attributes:
        bytes: What all frames take.
    """

    def __init__(self, store: Store, rows: Iterable[int]) -> None:
        self.bytes = self._frames = 0
        shapes = {}
        for row in rows:
            record = store.rows[row]
            shapes[row] = record.frames, record.height, record.width, 3
            self._frames += record.frames
        self._places: dict[int, _Place] = {}
        flag, start = 0, -(-self._frames // mmap.PAGESIZE) * mmap.PAGESIZE
        for row, shape_THWC in shapes.items():
            flags = slice(flag, flag + shape_THWC[0])
            self._places[row] = _Place(flags, start + self.bytes, shape_THWC)
            flag += shape_THWC[0]
            self.bytes += math.prod(shape_THWC)
        self._open(unnamed_file("tats-frames", start + self.bytes))

    def read(self, row: int, frames: list[int], decode: Callable[[list[int]], Tensor]) -> Tensor:
        """Return frames of a row; those that no process has decoded yet are decoded and kept.

        Args:
            row: One of the rows it has room for.
            frames: Different frames of it.
            decode: Decodes the frames it is given: uint8 (T, C, H, W).

        Returns:
            uint8 (T, C, H, W), stored channels last like what is decoded; a copy.

        Raises:
            ValueError: If the pictures are not of the size that the manifest says.
            TatsError: If there is no room left for what should fit.
        """
        place = self._places[row]
        missing = self._missing(place, frames)
        if missing:
            decoded_TCHW = decode(missing)
            self._keep(place, missing, decoded_TCHW)
            if missing == frames:
                return decoded_TCHW
        kept_THWC = np.ndarray(place.shape_THWC, np.uint8, self._memory, place.start)
        return torch.from_numpy(kept_THWC[frames]).permute(0, 3, 1, 2)

    def _missing(self, place: _Place, frames: list[int]) -> list[int]:
        """Return those of some frames that are not there."""
        known = self._known[place.flags]
        if not known[frames].all():
            with self._locked(alone=False):
                known[:] = self._flags[place.flags]
        return [frame for frame in frames if not known[frame]]

    def _keep(self, place: _Place, frames: list[int], video_TCHW: Tensor) -> None:
        """Write frames, and then say that they are there."""
        pictures_THWC = video_TCHW.permute(0, 2, 3, 1).contiguous().numpy()
        size = place.shape_THWC[1:]
        if pictures_THWC.shape[1:] != size:
            raise ValueError(
                f"its pictures are {pictures_THWC.shape[2]} x {pictures_THWC.shape[1]} pixels,"
                f" the manifest says {size[1]} x {size[0]}"
            )
        # By calls and not through the mapping: where there is no room left, they return an error,
        # while a process that touches such a page is killed.
        try:
            for frame, picture_HWC in zip(frames, pictures_THWC, strict=True):
                self._write(picture_HWC, place.start + frame * picture_HWC.size)
            with self._locked(alone=True):
                flags = self._flags[place.flags].copy()
                flags[frames] = True
                self._write(flags, place.flags.start)
        except OSError as error:
            raise TatsError(
                f"there is no memory left for decoded frames: {error}",
                "set `data.cache=none`, or a smaller `data.cache_gb`",
            ) from error
        self._known[place.flags] = flags

    def _write(self, values: np.ndarray, at: int) -> None:
        content = values.data.cast("B")
        while content:
            written = os.pwrite(self._descriptor, content, at)
            content, at = content[written:], at + written

    @contextmanager
    def _locked(self, *, alone: bool) -> Iterator[None]:
        """Hold the kernel's lock on the file, alone or with other readers; a killed process cannot
        leave it behind."""
        import fcntl

        fcntl.lockf(self._descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _open(self, descriptor: int) -> None:
        """Map a file, which is closed with this object."""
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self._flags = np.frombuffer(self._memory, np.bool_, self._frames)
        self._known = np.zeros(self._frames, np.bool_)  # flags that this process has seen set

    def __getstate__(self) -> dict[str, Any]:
        from multiprocessing.reduction import DupFd

        assert_spawning(self)  # a descriptor can be sent to a process that is starting, not kept
        kept = {name: self.__dict__[name] for name in ("bytes", "_frames", "_places")}
        return {**kept, "descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        descriptor = state.pop("descriptor").detach()
        self.__dict__.update(state)
        self._open(descriptor)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row lies in the file.

    Attributes:
        flags: Bytes of its frames' flags.
        start: First byte of its frames.
        shape_THWC: Shape of all its frames.
    """

    flags: slice
    start: int
    shape_THWC: tuple[int, int, int, int]


def _not_kept(
    plan: CachePlan, data: Data, reason: str, *, enough: float | None = None
) -> CachePlan:
    """Return the plan with the reason why nothing is kept; `ram` refuses with it.

    Args:
        plan: What would be kept.
        data: The recipe's `data`.
        reason: Why it is not.
        enough: The smallest `data.cache_gb` that would do.
    """
    if data.cache != "ram":
        return replace(plan, reason=reason)
    larger = "" if enough is None else f"set `data.cache_gb={enough:g}`, or "
    raise RecipeError(
        f"`data.cache: ram` cannot keep {plan.frames:,} frames: {reason}",
        hint=f"{larger}allow `data.cache=auto` or `none`, which decode them in every epoch",
    )
