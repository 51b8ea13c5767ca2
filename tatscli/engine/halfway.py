"""The state at the end of the last step, while the next one is running.

Weights and moments do not change before the end of a step. Buffers do, such as BatchNorm's running
statistics or a sampler's memory: these are copied at the start of the step.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tatscli.engine.part import Part

State = dict[str, dict[str, Tensor]]

_UNCOUNTED = ("running_mean", "running_var")
"""Buffers of torch's own BatchNorm, whose kernels change them without counting."""


class Halfway:
    """Keeps the state at the start of a step, if steps have several micro-batches.

    Torch's version counters tell which tensors change within a step; the first step of a session
    finds them, and everything before it is on disk.

    Args:
        parts: What a checkpoint keeps.
        accumulation: Micro-batches in a step.
    """

    def __init__(self, parts: Mapping[str, Part], accumulation: int) -> None:
        self._parts = parts
        self._used = accumulation > 1
        self._moving: set[tuple[str, str]] = set()
        self._live: State = {}
        self._kept: State = {}
        self._versions: dict[tuple[str, str], int] = {}

    def begin(self) -> None:
        """Keep the current state."""
        if not self._used:
            return
        self._live = {part: one.tensors() for part, one in self._parts.items()}
        self._versions = self._count()
        self._kept = {
            part: {
                name: one.clone() if self._moves(part, name) else one for name, one in named.items()
            }
            for part, named in self._live.items()
        }

    def look(self) -> None:
        """Note which tensors the micro-batches of the step have changed so far."""
        now = self._count()
        self._moving |= {key for key in now if now[key] != self._versions[key]}

    def state(self) -> State:
        """Return the tensors as they were; nothing if a tensor changed that was not copied."""
        now = self._count()
        for part, name in (key for key in now if now[key] != self._versions[key]):
            if self._kept[part][name] is self._live[part][name]:
                return {}
        return self._kept

    def _moves(self, part: str, name: str) -> bool:
        return (part, name) in self._moving or name.endswith(_UNCOUNTED)

    def _count(self) -> dict[tuple[str, str], int]:
        return {
            (part, name): one._version
            for part, named in self._live.items()
            for name, one in named.items()
            if not one.is_inference()  # which torch counts no changes of, and we make none to
        }
