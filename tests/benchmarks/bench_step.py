"""A training step against its floor, and with `--peer` against transformers' VideoMAE.

    python tests/benchmarks/bench_step.py
    python tests/benchmarks/bench_step.py --batches --peer

The recipe `demo` (nano, `tats`) takes optimiser steps as `tats pretrain` does, from clips of random
uint8 pixels and motion in memory to the updated weights: forward pass, sampler, backward pass, both
optimisers, metrics. `floor` is the operations of its products, which torch counts, at the speed
that a large float32 product reaches in the same rounds; `products` runs the very products of a step
once more and nothing else, so it says what shapes so small can reach.

`--peer`: ViT-B, 16 frames of 224 x 224, tube 0.9, against `VideoMAEForPreTraining` with the same
sizes, the same standardised pixels as targets and fused AdamW. Its masks are drawn in every step,
too; it measures no gradient norm and no metrics.

Prints one JSON object: medians over rounds in which all sides take turns in one process,
milliseconds of a step by the clock and in processor time. `percent_of_ceiling` is the floor by the
processor time; `operators`, `kernels` and `waits` are those of `bench_masks.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
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


def theirs(batch: int) -> tuple[Callable[[], None], int]:
    """Make a step of transformers' model; also return its parameters."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from tatscli.recipe.load import load_recipe
    from tatscli.system.cost import count_parameters

    recipe = load_recipe("ssv2").recipe
    data, (slices, rows, columns) = recipe.data, recipe.grid
    torch.manual_seed(0)
    # Its defaults are ViT-B, and the decoder of 4 blocks, 384 wide, 6 heads.
    config = VideoMAEConfig(image_size=224, num_frames=data.frames, norm_pix_loss=True)
    model = VideoMAEForPreTraining(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    video = noise(recipe, batch).video_BCTHW
    mean, std = (torch.tensor(one)[:, None, None] for one in (data.mean, data.std))
    sites = rows * columns
    shown = sites // 10 + 1  # 20 of 196, as ours

    def step() -> None:
        pixels = (video.transpose(1, 2).float() / 255 - mean) / std
        hidden = torch.ones(batch, sites, dtype=torch.bool)
        hidden.scatter_(1, torch.rand(batch, sites).argsort(1)[:, :shown], False)
        model(pixels, bool_masked_pos=hidden.repeat(1, slices)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, count_parameters(model)


def peer(batch: int, rounds: int) -> dict[str, Any]:
    """Measure ViT-B with tubes: ours and that of transformers."""
    import torch
    import transformers

    from tatscli.recipe.load import load_recipe
    from tatscli.system.cost import count_parameters
    from tatscli.system.system import build_system
    from tests.nn.counting import counted_macs

    recipe = load_recipe("ssv2", ["mask={kind: tube, ratio: 0.9}"]).recipe
    torch.manual_seed(0)
    system = build_system(recipe)
    their_step, their_size = theirs(batch)
    steps = {"ours": Steps(recipe, system, noise(recipe, batch)), "transformers": their_step}
    sizes = {"ours": count_parameters(system.autoencoder), "transformers": their_size}
    counts = {name: 2 * counted_macs(step, gradients=True) for name, step in steps.items()}
    taken = milliseconds({PRODUCT: large_product(), **steps}, rounds=rounds, calls=1, device="cpu")
    ceiling = speed(taken[PRODUCT])
    ours, other = taken["ours"], taken["transformers"]
    return {
        "transformers": transformers.__version__,
        "gflops": round(ceiling, 1),
        "visible": system.masker.visible,
        **{
            name: {
                "parameters": sizes[name],
                "step": rounded(taken[name]),
                **held_against(taken[name], counts[name] / 1e9, ceiling),
            }
            for name in steps
        },
        "transformers_by_ours": {clock: round(other[clock] / ours[clock], 2) for clock in ours},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 64], help="of the demo")
    for name, default in {"rounds": 9, "steps": 10, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peer", action="store_true", help="ViT-B against transformers")
    parser.add_argument("--peer-batch", type=int, default=1)
    parser.add_argument("--peer-rounds", type=int, default=5)
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
    if options.peer and find_spec("transformers") is None:
        result["peer"] = "skipped: not installed; `pip install -e '.[hf]'`"
    elif options.peer:
        result["peer"] = peer(options.peer_batch, options.peer_rounds)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
