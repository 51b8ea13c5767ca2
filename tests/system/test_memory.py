"""What a step keeps in memory: counted with fake tensors, and measured with real ones."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tatscli.draws import Draws
from tatscli.engine.parallel import train_blocks
from tatscli.recipe.schema import Recipe
from tatscli.system.memory import StepMemory, pretended, step_memory
from tatscli.system.system import System, build_system
from tatscli.tasks.memory_plan import _batch
from tatscli.tasks.pretrain import step

VIEWS = 2


def recipe_of(*, checkpointing: bool = False, depth: int = 4, **sections: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"store": "", "frames": 8, "size": 96, "sampling": {"stride": 1}},
            "model": {"width": 96, "depth": depth, "heads": 3, "patch": 16}
            | {"checkpointing": checkpointing},
            "mask": {"kind": "tube", "ratio": 0.5},
            "head": {"kind": "decoder", "depth": 2},
            **sections,
        }
    )


def built(recipe: Recipe) -> System:
    """Build a system whose blocks recompute as in a training."""
    system = build_system(recipe).train()
    train_blocks(system.autoencoder, checkpointing=recipe.model.checkpointing)
    return system


def counted(recipe: Recipe, *, half: bool, views: int = VIEWS) -> StepMemory:
    with torch.device("meta"):
        system = built(recipe).to("meta")
    with pretended(*system.parts):
        return step_memory(
            lambda: step(system, _batch(recipe, views), Draws(0)).loss, system.parts, half=half
        )


def measured(recipe: Recipe, *, half: bool) -> int:
    """The most bytes that torch's own allocator had given out, beside weights: from the profiler's
    list of allocations. Gradients are handed over as soon as they are there."""
    system = built(recipe)
    for parameter in system.autoencoder.parameters():
        parameter.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", None))
    cast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext()

    def once() -> None:
        with cast:
            loss = step(system, _batch(recipe, VIEWS), Draws(0)).loss
        loss.backward()

    once()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        once()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    assert len(events) > 500
    live = most = 0
    for one in sorted(events, key=lambda event: event.start_ns()):
        live += one.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_count_is_what_the_allocator_gives_out(checkpointing: bool, half: bool) -> None:
    recipe = recipe_of(checkpointing=checkpointing)
    found = counted(recipe, half=half)
    assert found.activations + found.copies == pytest.approx(measured(recipe, half=half), rel=0.15)


def test_a_sampler_is_counted_too() -> None:
    mask = {"kind": "tats", "ratio": 0.5, "width": 48, "heads": 3}
    recipe = recipe_of(mask=mask)
    found = counted(recipe, half=False)
    assert found.activations == pytest.approx(measured(recipe, half=False), rel=0.15)
    assert found.activations > counted(recipe_of(), half=False).activations


def test_activations_grow_with_the_batch_and_with_depth() -> None:
    one, four = (counted(recipe_of(), half=False, views=views).activations for views in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.05)
    shallow, deep = (counted(recipe_of(checkpointing=True, depth=depth), half=True).activations
                     for depth in (4, 8))  # fmt: skip
    seen = VIEWS * 4 * 18  # tokens, whose residual stream is kept before each block, in float32
    assert deep - shallow == pytest.approx(4 * seen * 96 * 4, rel=0.1)


def test_rounded_weights_are_told_apart() -> None:
    """Autocast keeps a 16-bit copy of every matrix through which a gradient goes back."""
    found = counted(recipe_of(), half=True)
    with torch.device("meta"):
        system = build_system(recipe_of())
    matrices = sum(
        one.numel()
        for name, one in system.autoencoder.named_parameters()
        if one.ndim > 1 and "mask_token" not in name and "patch_embed" not in name
    )
    assert found.copies == pytest.approx(2 * matrices, rel=0.02)
    assert counted(recipe_of(), half=False).copies == 0
