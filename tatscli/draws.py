"""`Draws`: the random numbers of a batch of clips, a stream for each.

What is drawn for a clip depends on the seed and on the clip's place among all clips of a step, not
on those that share a batch with it: one process or several, one batch or several accumulated, draw
the same. A stream is SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"): integer arithmetic, so that numpy and torch may change without changing it, and on all
streams at once, which is faster than a generator that is seeded anew for every clip.

Shapes: B batch, X numbers of each clip.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEP, _FIRST, _SECOND = (
    np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Draws:
    """Random numbers of the clips of a batch; each call goes on where the last one stopped.

    Numbers are drawn on the CPU: one seed means the same on every device.

    Args:
        seed: Of all clips.
        first: The place of the batch's first clip; the others follow it.

    Attributes:
        version: Of what a seed means; checkpoints name it. In the first, which they do not name,
            the clips of a micro-batch shared a stream.
    """

    version: ClassVar[int] = 2

    def __init__(self, seed: int, *, first: int = 0) -> None:
        self._seed = np.array([seed % 2**64], dtype=np.uint64)
        self._first = first
        self._key_B = np.empty(0, dtype=np.uint64)
        self._taken = 0

    def uniform(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draw float32 in [0, 1), multiples of 2^-24; the first axis counts clips."""
        steps_BX = (self._words_BX(shape) >> np.uint64(40)).astype(np.float32)
        return _sent(steps_BX * np.float32(2**-24), shape, device)

    def gumbel(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draw float32 Gumbel noise; the first axis counts clips."""
        # Odd multiples of 2^-24: neither 0 nor 1, where the logarithms end.
        steps_BX = (self._words_BX(shape) >> np.uint64(40) | np.uint64(1)).astype(np.float32)
        return _sent(-np.log(-np.log(steps_BX * np.float32(2**-24))), shape, device)

    def seed(self) -> int:
        """Draw a 63-bit seed for what the batch has in common: one of its first clip's numbers."""
        return int(self._words_BX((1, 1))[0, 0] >> np.uint64(1))

    def _words_BX(self, shape: tuple[int, ...]) -> NDArray[np.uint64]:
        clips, count = shape[0], math.prod(shape[1:])
        if len(self._key_B) != clips:
            self._key_B = splitmix(self._seed, self._first, clips)[0]
        words_BX = splitmix(self._key_B, self._taken, count)
        self._taken += count
        return words_BX


def splitmix(seed_B: NDArray[np.uint64], first: int, count: int) -> NDArray[np.uint64]:
    """Return `count` numbers of SplitMix64 from the `first` on, counted from 0, for each seed:
    (B, X)."""
    place_X = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    word_BX = seed_B[:, None] + place_X * _STEP
    word_BX ^= word_BX >> np.uint64(30)
    word_BX *= _FIRST
    word_BX ^= word_BX >> np.uint64(27)
    word_BX *= _SECOND
    word_BX ^= word_BX >> np.uint64(31)
    return word_BX


def _sent(numbers: NDArray[np.float32], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Copy to a device without waiting for it, which takes pinned memory on the way to a GPU."""
    tensor = torch.from_numpy(numbers).view(shape)
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
