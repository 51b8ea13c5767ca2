"""`LossScale`: what losses are multiplied with in fp16, so that small gradients do not vanish.

The numbers are those of `torch.amp.GradScaler`. Other than there nothing is read back: what
learners find and the scale itself are tensors on the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tatscli.engine.part import Lesson

FIRST, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""Scale of the first step; its factor after `INTERVAL` steps without an overflow, and after one."""


class LossScale:
    """The scale of a training's losses, one for all of its learners.

    As a power of two it changes no bit of a gradient that neither overflows nor vanishes. It falls
    after a step in which a learner's gradient overflowed, and grows after many without.

    Args:
        device: Where the losses are.

    Attributes:
        scale: float32 scalar on the device.
        fell: Whether it fell after the last step: boolean scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), FIRST, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)
        self._overflow = self.fell = torch.zeros((), dtype=torch.bool, device=device)
        self._begun = False

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a loss for the backward pass."""
        return loss * self.scale

    def unscale_(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients by the scale, in place; of sharded ones each process its own part."""
        # A DTensor is told by what it can do: importing its class takes half a second.
        local = [one.to_local() if hasattr(one, "to_local") else one for one in gradients]
        torch._foreach_mul_(local, self.scale.reciprocal())

    def hear(self, overflow: Tensor) -> None:
        """Take from a learner whether its gradients overflowed: boolean scalar, alike on all
        ranks."""
        self._overflow = self._overflow | overflow

    def after_step(self, done: int, total: int) -> Lesson:
        """Set the scale of the next step; `loss_scale` is that of the one that is over."""
        self._begun = True
        before = self.scale
        good = torch.where(self._overflow, 0, self._good + 1)
        grown = before * GROWTH
        grows = (good == INTERVAL) & grown.isfinite()
        self.scale = torch.where(
            self._overflow, before * BACKOFF, torch.where(grows, grown, before)
        )
        self._good = torch.where(good == INTERVAL, 0, good).int()
        self.fell, self._overflow = self._overflow, torch.zeros_like(self._overflow)
        return Lesson({"loss_scale": before})

    def tensors(self) -> dict[str, Tensor]:
        """Return scale and steps since it last changed; nothing before the first step."""
        return {"scale": self.scale, "good": self._good} if self._begun else {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        self.scale = tensors["scale"].to(self.scale.device, copy=True)
        self._good = tensors["good"].to(self._good.device, copy=True)
        self._begun = True
