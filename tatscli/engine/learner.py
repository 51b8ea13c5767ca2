"""`Learner`: a module that learns: optimiser, learning rate, clipping, averaging over ranks, state.

A training has as many as it needs. Gradients of all come from one backward pass, and each then
takes its own step; a learner that needs further steps in between takes them with `learn`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tatscli.engine import distributed
from tatscli.engine.device import full_precision
from tatscli.engine.loss_scale import LossScale
from tatscli.engine.optim import set_lr
from tatscli.engine.part import Lesson


class Learner:
    """Updates a module from the gradients that are there, unless they are not finite.

    Whether they are is decided on the device, by the fused optimiser itself: the host need not
    wait for the answer (`engine/bad_steps.py` counts them).

    Args:
        module: What learns.
        optimizer: Over its parameters.
        lr: Learning rate of optimiser step 0, 1, ...
        clip_grad: Largest gradient norm, if any.
        averages: Average the gradients over all processes first; not of a module that is shared
            by `parallelize`, which does that.

    Attributes:
        step: The optimiser step it is in, from 0.
        left_out: Whether the last update was left out: boolean scalar on the device.
        halted: Whether no update may be made any more: boolean scalar on the device; None: never.
        loss_scale: What the losses of the training are multiplied with, if anything.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lr: Callable[[int], float],
        clip_grad: float | None = None,
        averages: bool = False,
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.clip_grad = clip_grad
        self.averages = averages
        self.step = 0
        self.left_out: Tensor | None = None
        self.halted: Tensor | None = None
        self.loss_scale: LossScale | None = None
        self._lr = lr
        self._parameters = dict(module.named_parameters())  # walking takes longer than a norm

    def begin(self, step: int) -> float:
        """Set and return the learning rate of an optimiser step."""
        self.step = step
        lr = self._lr(step)
        set_lr(self.optimizer, lr)
        return lr

    def learn(self, loss: Tensor, *, skip: Tensor | None = None, share: float = 1.0) -> Tensor:
        """Take a step of its own from a loss; arguments and result as in `update`.

        Args:
            loss: With its graph.
            skip: As in `update`.
            share: Of the learning rate, for a loss over that share of a step's videos.
        """
        set_lr(self.optimizer, share * self._lr(self.step))
        # An outer autocast would reach into the backward pass and round its products.
        with full_precision(loss.device):
            (loss if self.loss_scale is None else self.loss_scale.scaled(loss)).backward()
        norm = self.update(skip=skip)
        assert norm is not None
        return norm

    def update(self, *, skip: Tensor | None = None) -> Tensor | None:
        """Step, and forget the gradients.

        Args:
            skip: Boolean scalar on the device, equal on all ranks: leave the weights alone.

        Returns:
            The norm of the gradients before clipping and without a loss scale, a scalar on the
            device; None where there are none, as after a batch that is only remembered.
        """
        parameters = [one for one in self._parameters.values() if one.grad is not None]
        if not parameters:
            return None
        gradients = [one.grad for one in parameters if one.grad is not None]
        if self.averages:
            distributed.average_(gradients)
        if self.loss_scale is not None:
            self.loss_scale.unscale_(gradients)
        norm = distributed.total_norm(gradients)
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        # Averaging has spread what is not finite on one rank to all, so all decide alike.
        overflow = ~norm.isfinite()
        if skip is not None:
            overflow = overflow & ~skip
        if self.loss_scale is not None:
            self.loss_scale.hear(overflow)
        self.left_out = overflow if skip is None else skip | overflow
        if self.halted is not None:
            self.left_out = self.left_out | self.halted
        self._step_unless(self.left_out)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _step_unless(self, left_out: Tensor) -> None:
        if self.optimizer.defaults.get("fused"):
            # The way of torch.amp.GradScaler: a fused step does nothing where this is 1.
            self.optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(left_out):
            self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments as `<parameter name>/<moment>`, shared out as the parameters are."""
        return {
            f"{name}/{moment}": value.detach()
            for name, parameter in self._parameters.items()
            for moment, value in self.optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        fused = self.optimizer.defaults.get("fused")
        self.optimizer.state.clear()
        for key, value in tensors.items():
            name, moment = key.rsplit("/", 1)
            parameter = self._parameters[name]
            # Unless it is fused, AdamW counts its steps on the CPU whatever the device.
            place = "cpu" if moment == "step" and not fused else parameter.device
            like = parameter if value.shape == parameter.shape else None
            own = distributed.shared_as(value, like)
            self.optimizer.state[parameter][moment] = own.to(place, copy=True)

    def forget(self) -> None:
        """Drop the moments, as after the weights were set back."""
        self.optimizer.state.clear()

    def after_step(self, done: int, total: int) -> Lesson:
        """Say nothing: the loop itself asks for norms."""
        return Lesson()
