"""The settings of `bench_long.py`: systems, their steps, tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from tests.benchmarks.steps import Steps, counted, noise

SCALES = {"half": {"model": "small", "size": 160}, "full": {"model": "base", "size": 224}}
FRAMES, BUDGETS = (16, 32, 64, 96, 128), (100, 50, 25, 15)
ATTENTION = ("fused", "plain")
MASKS = ("tube", "mgm", "adamae", "tats")
WINDOW = 16
TOKENIZERS: dict[str, dict[str, Any]] = {
    "a": {"patch": 4, "widths": [32, 64, 128], "blocks": 1},
    "b": {"patch": 4, "widths": [40, 80, 160], "blocks": 1},
    "c": {"patch": 1, "widths": [64, 128, 128, 256, 256], "blocks": 2},
}
CHEAP = ("a", "b")  # coded whole and in turns with steps; of the other, one window once
WINDOWS = {"a": 8, "b": 8, "c": 1}

Setting = dict[str, Any]


def setting(scale: str, frames: int, budget: int, **more: Any) -> Setting:
    """Return a setting with what is left open."""
    plain = {"attention": "fused", "checkpointing": False, "mask": "tube", "gradients": False}
    return {"scale": scale, "frames": frames, "budget": budget, **plain, **more}


def recipe_of(one: Setting, **other: Any) -> Any:
    """Return the recipe of a setting; its budget is set later, on the selection."""
    from tatscli.recipe.schema import Recipe

    scale = SCALES[one["scale"]] | other
    return Recipe.model_validate(
        {
            "data": {"store": "unused", "frames": one["frames"], "size": scale["size"]},
            "model": {"size": scale["model"], "checkpointing": one["checkpointing"]},
            "mask": {"kind": one["mask"], "ratio": 0.9},
            "predict": {"kind": "random"},
        }
    )


def choose(system: Any, budget: int) -> None:
    """Have a system predict a share of the clip in percent, at most what is hidden."""
    tokens = system.form.tokens
    system.predict.budget = min(round(budget * tokens / 100), tokens - system.masker.visible)


def attending(one: Setting) -> Any:
    """Return the context in which attention takes the form of a setting."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return nullcontext() if one["attention"] == "fused" else sdpa_kernel(SDPBackend.MATH)


def built(one: Setting, **other: Any) -> tuple[Any, Steps]:
    """Build a system and its training, moments included, so that every step finds the same."""
    import torch

    from tatscli.system.system import build_system

    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = recipe_of(one, **other)
    system = build_system(recipe)
    choose(system, one["budget"])
    steps = Steps(recipe, system, noise(recipe, 1, motion=system.follows_motion))
    for learner in steps.training.learners.values():
        for group in learner.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        learner.optimizer.step()
        learner.optimizer.zero_grad(set_to_none=True)
    return system, steps


def step_of(system: Any, steps: Steps, one: Setting) -> Callable[[], None]:
    """Return a function that takes a step in a setting."""

    def step() -> None:
        choose(system, one["budget"])
        with attending(one):
            steps()

    return step


def counted_step(one: Setting) -> int:
    """Count the operations of a clip's step, forward and backward."""
    import torch

    from tatscli.system.system import build_system

    recipe = recipe_of(one)
    with torch.device("meta"):
        system = build_system(recipe)
    choose(system, one["budget"])
    return counted(recipe, system)["whole"]


def sizes(one: Setting) -> dict[str, int]:
    """Return tokens in the encoder, tokens predicted, and parameters."""
    import torch

    from tatscli.system.cost import count_parameters
    from tatscli.system.system import build_system

    with torch.device("meta"):
        system = build_system(recipe_of(one))
    choose(system, one["budget"])
    return {
        "visible": system.masker.visible,
        "predicted": system.predict.budget,
        "parameters": count_parameters(system.autoencoder),
    }


def tokenizer(name: str, device: str = "cpu") -> tuple[Any, Any]:
    """Build a tokenizer for windows of 16 frames, and noise for one window."""
    import torch

    from tatscli.recipe.schema import Recipe
    from tatscli.tokenizer.adaptive import AdaptiveTokenizer

    torch.manual_seed(0)
    size = SCALES["full"]["size"]
    config = {"kind": "adaptive", "stride": 16, "scorer_width": 32, **TOKENIZERS[name]}
    data = {"store": "unused", "frames": WINDOW, "size": size}
    recipe = Recipe.model_validate({"data": data, "tokenizer": config})
    with torch.device(device):
        coder = AdaptiveTokenizer(recipe.tokenizer, window=WINDOW).eval()  # type: ignore[arg-type]
        return coder, torch.rand(1, 3, WINDOW, size, size)
