"""How much memory a training takes, in `--dry-run`: its step is counted at the recipe's batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        system: Its system, on the meta device; not to be used any more afterwards.
        devices: How many there are, and how large.

    Returns:
        `plans`, one for every way of `run.parallel` and of recomputing, and what they are about; or
        `problem`, which says why a step cannot be counted.
    """
    if system.cached_codes:
        return {"problem": "not counted: the step reads codes from the store"}
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
        model: Its classifier, on the meta device, with what is frozen; not to be used any more.
        kept: Tokens of a clip that it sees.
        devices: How many there are, and how large.
    """
    settings, data = recipe.finetune, recipe.data
    if settings.auxiliary is not None:
        return {"problem": "not counted: `finetune.auxiliary` trains a masked half besides"}
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
    """Count a step as the recipe has it, or also the other way: by whether blocks are recomputed;
    where that cannot be done, say why."""
    chosen = recipe.model.checkpointing
    found = {}
    with pretended(*parts):
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
    """Whether a GPU would compute in 16 bits."""
    return run.precision != "fp32" and not (run.precision == "auto" and run.device == "cpu")


def this_device() -> float | None:
    """Return the GB of the GPU of this machine, if there is one."""
    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory / GB)


def planned_devices(gpus: int | None, memory: float | None, world: int) -> Devices:
    """Return the devices that options name, or else those that there are."""
    asked = gpus is not None or memory is not None
    return Devices(gpus or world, memory if asked else this_device(), asked)
