"""A small training step against its floor.

    python tests/benchmarks/bench_step.py

The recipe `demo` (nano, `tats`) takes optimiser steps as `tats pretrain` does, from clips of random
uint8 pixels and motion in memory to the updated weights: forward pass, sampler, backward pass, both
optimisers, metrics. `floor` is the operations of its products, which torch counts, at the speed
that a large float32 product reaches in the same rounds; `products` runs the very products of a step
once more and nothing else, so it says what shapes so small can reach.

Prints one JSON object: medians over rounds in which all sides take turns in one process,
milliseconds of a step by the clock and in processor time. `percent_of_ceiling` is the floor by the
processor time; `operators`, `kernels` and `waits` are those of `bench_masks.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine, milliseconds, operators, rounded
from tests.benchmarks.measure import load
from tests.benchmarks.steps import Steps, counted, noise

SIDE = 2048  # of the large product
PRODUCT = "large product"


def large_product() -> Callable[[], Any]:
    """Make the product that stands for what the machine can do."""
    import torch

    one, other = torch.randn(2, SIDE, SIDE)
    return lambda: one @ other


def products(step: Callable[[], None]) -> Callable[[], None]:
    """Take a step, and return a function that runs its products again, attention among them."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[Any, Any, Any]] = []

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.overloadpacket in flop_registry:
                self.calls.append((function, args, kwargs or {}))
            return function(*args, **(kwargs or {}))

    with Recorder() as recorder:
        step()
    calls = recorder.calls

    def again() -> None:
        for function, args, kwargs in calls:
            function(*args, **kwargs)

    return again


def repeated(call: Callable[[], Any], times: int) -> Callable[[], None]:
    """Return a function that calls another several times."""

    def run() -> None:
        for _ in range(times):
            call()

    return run


def held_against(taken: dict[str, float], gigaflop: float, ceiling: float) -> dict[str, float]:
    """Hold a step against the floor: `ceiling` is GFLOP in a second of processor time."""
    floor = 1000 * gigaflop / ceiling
    return {
        "gflop": round(gigaflop, 3),
        "floor": round(floor, 2),
        "by_floor": round(taken["cpu"] / floor, 2),
        "percent_of_ceiling": round(100 * floor / taken["cpu"], 1),
    }


def speed(taken: dict[str, float]) -> float:
    """Return GFLOP in a second of processor time, by the large product."""
    return 2 * SIDE**3 / 1e6 / taken["cpu"]


def nano(batches: list[int], rounds: int, steps: int) -> dict[str, Any]:
    """Measure the steps of the demo."""
    import torch

    from tatscli.recipe.load import load_recipe
    from tatscli.system.system import build_system

    recipe = load_recipe("demo").recipe
    counts = counted(recipe)
    trainings, sides = {}, {PRODUCT: large_product()}
    for batch in batches:
        torch.manual_seed(0)
        one = Steps(recipe, build_system(recipe), noise(recipe, batch, motion=True))
        one()
        trainings[batch] = one
        sides[f"step {batch}"] = repeated(one, steps)
        sides[f"products {batch}"] = repeated(products(one), steps)
    taken = milliseconds(sides, rounds=rounds, calls=1, device="cpu")
    ceiling = speed(taken[PRODUCT])
    found: dict[str, Any] = {
        "gflops": round(ceiling, 1),
        "mflop_per_clip": {name: round(one / 1e6, 1) for name, one in counts.items()},
    }
    for batch, training in trainings.items():
        step, alone = (
            {clock: one / steps for clock, one in taken[f"{name} {batch}"].items()}
            for name in ("step", "products")
        )
        gigaflop = batch * counts["whole"] / 1e9
        found[f"batch {batch}"] = {
            "step": rounded(step),
            **held_against(step, gigaflop, ceiling),
            "products": rounded(alone),
            "products_by_floor": held_against(alone, gigaflop, ceiling)["by_floor"],
            "step_by_products": round(step["cpu"] / alone["cpu"], 2),
            **operators(training),
            "loss": round(training.read()["loss"], 4),
        }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 64], help="of the demo")
    for name, default in {"rounds": 9, "steps": 10, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "settings": vars(options),
        "machine": machine("cpu"),
        "load_before": load(),
    }
    if options.batches:
        result["demo"] = nano(options.batches, options.rounds, options.steps)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
