"""Counting the FLOPs of a training step, on a copy of the stage that has shapes but no data."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tatscli.data.batch import blank_batch
from tatscli.draws import Draws
from tatscli.engine import distributed
from tatscli.engine.ceiling import known_peak
from tatscli.engine.session import Session
from tatscli.store.codes import scores_key
from tatscli.system.cost import count_flops

if TYPE_CHECKING:
    from tatscli.data.batch import Batch
    from tatscli.tasks.training import Stage

VIEWS = 2  # of the batch that is counted: what compares or mixes the clips of a batch needs two


def step_flops(stage: Stage) -> float:
    """Count the floating-point operations of products that a step takes for one clip, forward and
    backward, two for a multiply-accumulate: what MFU goes by.

    As usual for MFU, what `model.checkpointing` computes a second time does not count, and neither
    do the optimiser and whatever is no product. Nothing is computed and no memory taken.

    Args:
        stage: Built, and not yet wrapped for several processes.
    """
    twin = copy.copy(stage)
    with _OnMeta():
        copies = copy.deepcopy({name: getattr(stage, name, None) for name in stage.networks})
    for name, one in copies.items():
        setattr(twin, name, one)
    twin.network = twin.model
    batch = stage_batch(stage, VIEWS).to("meta")

    def work() -> None:
        lesson = twin.step(batch, Draws(0))
        assert lesson.loss is not None
        lesson.loss.backward()

    with distributed.apart():
        return count_flops(work, gradients=True) / VIEWS


def flops_for_mfu(stage: Stage, here: Session) -> float | None:
    """Count where the device's peak is known, so that there is a use for it; else return None."""
    if known_peak(here.device, here.dtype) is None:
        return None
    try:
        return step_flops(stage)
    except Exception as error:  # a part of the user's own may look at numbers, which are not there
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        here.reporter.warn(f"`mfu` is left out: the step's operations cannot be counted: {reason}")
        return None


def stage_batch(stage: Stage, views: int) -> Batch:
    """Make a batch of random pixels as the loader would hand it to a stage."""
    recipe, system = stage.recipe, getattr(stage, "system", None)
    _, rows, columns = recipe.grid
    batch = blank_batch(
        views,
        frames=recipe.data.frames,
        size=recipe.data.view_size,
        sites=(rows, columns),
        patch=recipe.model.patch,
        classes=len(stage.store.class_names),
    )
    names = system.cached_codes if system is not None else []
    shape = (views, recipe.data.frames, rows, columns)
    for name in names:
        batch.codes[name] = torch.zeros(shape, dtype=torch.int64)  # type: ignore[index]
        batch.codes[scores_key(name)] = torch.zeros(shape)  # type: ignore[index]
    return batch


class _OnMeta(TorchFunctionMode):
    """Copies of tensors that are made meanwhile have no memory."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                copied = tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
                memo[id(tensor)] = copied
            return memo[id(tensor)]
        if function is torch._C.TensorBase.clone:  # how a parameter copies itself
            return args[0].to("meta")
        return function(*args, **(kwargs or {}))
