"""Memory of a training, for `--dry-run`: a step is traced at the recipe's batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from tatscli.data.batch import Batch, blank_batch
from tatscli.data.normalize import standardized
from tatscli.draws import Draws
from tatscli.engine.parallel import blocks_of, train_blocks
from tatscli.machine import GB
from tatscli.nn.classifier import Classifier
from tatscli.nn.recompute import grouped_as_on_gpu
from tatscli.recipe.derive import derive_batch, derive_schedule
from tatscli.recipe.schema import Recipe, Run
from tatscli.system.cost import count_parameters
from tatscli.system.memory import StepMemory, pretended, step_memory
from tatscli.system.system import System
from tatscli.tasks.memory_table import Devices, Weights, plan_memory
from tatscli.tasks.pretrain import step

_UNCOUNTED = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def pretraining_memory(recipe: Recipe, system: System, devices: Devices) -> dict[str, Any]:
    """Plan the memory of a pretraining step.

    Args:
        recipe: The merged recipe.
        system: Its system, on the meta device; must not be used afterwards.
        devices: Number and memory of the devices.

    Returns:
        `plans`, one for each value of `run.parallel` and of `model.checkpointing`, with what they
        assume; or `problem`, which says why a step cannot be counted.
    """
    if system.cached_codes:
        return {"problem": "not counted: the step reads cached codes from the store"}
    data = recipe.data
    views = derive_batch(recipe.optim, world=devices.count)[0] * data.repeats
    schedule = derive_schedule(
        recipe.optim, videos=recipe.optim.total_batch, repeats=1, world=devices.count
    )
    networks = [one._network[0] for one in system.frozen()]
    asked = [*system.targets.values(), *networks]
    weights = _weights(
        system.autoencoder,
        own=count_parameters(system.masker),
        frozen=sum(map(count_parameters, asked)),
    )
    system.train()

    def prepare() -> None:
        system.masker.learners(schedule)

    def work() -> Tensor:
        loss = step(system, _batch(recipe, views), Draws(0)).loss
        assert loss is not None
        return loss

    parts = list(dict.fromkeys([*system.parts, *networks]))
    counted = _count(work, parts, recipe, devices, prepare=prepare)
    if isinstance(counted, str):
        return {"problem": counted}
    return plan_memory(
        weights, counted, devices, views=views, repeats=data.repeats, half=_half(recipe.run)
    )


def finetuning_memory(
    recipe: Recipe, model: Classifier, kept: int, devices: Devices
) -> dict[str, Any]:
    """Plan the memory of a fine-tuning step; arguments and result as of `pretraining_memory`.

    Args:
        recipe: The merged recipe.
        model: Its classifier, on the meta device, partly frozen; must not be used afterwards.
        kept: Number of tokens that it sees.
        devices: Number and memory of the devices.
    """
    settings, data = recipe.finetune, recipe.data
    if settings.auxiliary is not None:
        return {"problem": "not counted: `finetune.auxiliary` also trains masked modelling"}
    views = derive_batch(settings.optim, world=devices.count)[0] * settings.repeats
    averaged = count_parameters(model) if settings.ema is not None else 0
    weights = _weights(model, own=0, frozen=averaged)
    model.train()

    def work() -> Tensor:
        video_BCTHW = standardized(_batch(recipe, views).video_BCTHW, data.mean, data.std)
        some_BK = torch.arange(kept).expand(views, -1) if kept < model.encoder.tokens else None
        scores = model(video_BCTHW, some_BK, by_head=True)
        return sum((one.float().logsumexp(-1).sum() for one in scores), torch.zeros(()))

    counted = _count(work, [model], recipe, devices)
    if isinstance(counted, str):
        return {"problem": counted}
    return plan_memory(
        weights, counted, devices, views=views, repeats=settings.repeats, half=_half(recipe.run)
    )


def _weights(model: nn.Module, *, own: int, frozen: int) -> Weights:
    blocks = blocks_of(model)
    whole = count_parameters(model)
    still = sum(one.numel() for one in model.parameters() if not one.requires_grad)
    return Weights(
        sharded=whole,
        still=still,
        own=own,
        frozen=frozen,
        block=max(map(count_parameters, blocks), default=0),
        rest=whole - sum(map(count_parameters, blocks)),
    )


def _count(
    work: Callable[[], Tensor],
    parts: Sequence[nn.Module],
    recipe: Recipe,
    devices: Devices,
    *,
    prepare: Callable[[], None] = lambda: None,
) -> dict[bool, StepMemory] | str:
    """Count a step with and without activation checkpointing (only as in the recipe, unless devices
    were named), or say why it cannot be counted."""
    chosen = recipe.model.checkpointing
    found = {}
    gpu = recipe.run.device != "cpu"
    with pretended(*parts), grouped_as_on_gpu() if gpu else nullcontext():
        try:
            prepare()
            for checkpointing in (chosen, not chosen) if devices.asked else (chosen,):
                for part in parts:
                    train_blocks(part, checkpointing=checkpointing)
                found[checkpointing] = step_memory(work, parts, half=_half(recipe.run))
                for block in (block for part in parts for block in blocks_of(part)):
                    vars(block).pop("forward", None)
        except _UNCOUNTED as error:
            return f"not counted: {str(error).partition(chr(10))[0]}"
    return found


def _batch(recipe: Recipe, views: int) -> Batch:
    data = recipe.data
    return blank_batch(
        views,
        frames=data.frames,
        size=data.view_size,
        sites=recipe.grid[1:],
        patch=recipe.model.patch,
    )


def _half(run: Run) -> bool:
    """Whether a GPU would use 16-bit autocast."""
    return run.precision != "fp32" and not (run.precision == "auto" and run.device == "cpu")


def this_device() -> float | None:
    """Return the memory of this machine's GPU in GB, if there is one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory / GB)


def planned_devices(gpus: int | None, memory: float | None, world: int) -> Devices:
    """Return the devices given by options, else those of this machine."""
    asked = gpus is not None or memory is not None
    return Devices(gpus or world, memory if asked else this_device(), asked)
