"""How fast a training goes: clips a second, the share of the device's peak, memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tatscli.engine.ceiling import forget_peak_memory, known_peak, peak_memory, settle
from tatscli.engine.training import Training
from tatscli.machine import GB


class Pace:
    """Measures a training from one log line to the next.

    The clock runs from line to line, through waiting for data, steps and checkpoints; what happens
    in `aside` is left out. Nothing here waits for the device: a line is due when its averages have
    been read, which has waited already.

    Args:
        training: About to take its next step.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._peak = known_peak(training.device, training.dtype)
        self._aside = 0.0
        self._whole = training.done, time.perf_counter()
        self._begin()

    def _begin(self) -> None:
        self._step, self._since = self._training.done, time.perf_counter()
        forget_peak_memory(self._training.device)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave something out that is no training, such as scoring."""
        settle(self._training.device)  # whoever scores waits for the weights anyway
        began = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - began
            self._since += taken
            self._aside += taken

    def settled(self) -> None:
        """Count `per_step` from here on: the first step is done, which prepares and compiles."""
        self._whole, self._aside = (self._training.done, time.perf_counter()), 0.0

    def per_step(self) -> float:
        """Return the mean seconds of a step, data and checkpoints included; of the steps since
        `settled`, or of the first where there is no other."""
        step, since = self._whole
        taken = time.perf_counter() - since - self._aside
        return taken / max(1, self._training.done - step)

    def read(self) -> dict[str, float]:
        """Return the numbers of a log line, and begin the next.

        Returns:
            `clips_per_second`: clips (each view of a video is one) that all processes together have
            trained on in a second; `mfu`: their operations by what the maker of the devices states,
            not a number where that or the operations are unknown; `peak_memory_gb` of this process:
            on CUDA of its tensors since the line before, on a CPU of all of it since it began.
        """
        training = self._training
        clips = training.schedule.total_batch * training.schedule.repeats
        taken = max(time.perf_counter() - self._since, 1e-9)
        rate = (training.done - self._step) * clips / taken
        mfu = math.nan
        if training.flops is not None and self._peak is not None:
            mfu = training.flops * rate / (training.world.size * self._peak)
        memory = peak_memory(training.device) / GB
        self._begin()
        return {"clips_per_second": rate, "mfu": mfu, "peak_memory_gb": memory}
