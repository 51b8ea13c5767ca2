"""What the learned samplers add to a training step: time and peak memory against `tube`.

    python tests/benchmarks/bench_sampler.py
    python tests/benchmarks/bench_sampler.py --device cuda --dtype bfloat16 --compile --batch 16

A step is that of `tatscli/tasks/pretrain.py`, from uint8 frames in memory to the updated weights,
on ViT-B with 16 frames of 224 x 224. `embed_all` is `tube` made to embed every patch, as a learned
sampler needs. Tubes show whole sites, so their count of visible tokens is the nearest possible.

Prints one JSON object: the floor, which is multiply-accumulates counted by formula and their ratio
to `tube`; then medians over rounds in which the sides take turns, each in a process of its own, and
peak memory above what the process takes before it builds the system. On the CPU seconds are
processor time: other programs hardly lengthen that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SIDES: dict[str, dict[str, Any]] = {
    "tube": {"kind": "tube"},
    "embed_all": {"kind": "tube"},
    "adamae": {"kind": "adamae"},
    "tats_384": {"kind": "tats", "width": 384, "epochs": 1},
    "tats_768": {"kind": "tats", "width": 768, "epochs": 1},
}


def build(side: str, ratio: float, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the recipe and the system of one side."""
    from tatscli.recipe.schema import Recipe
    from tatscli.tasks.build import build_system

    data = {"store": "unused", "frames": options["frames"], "size": options["size"]}
    mask = SIDES[side] | {"ratio": ratio}
    model = {"size": options["model"]}
    recipe = Recipe.model_validate({"data": data, "model": model, "mask": mask})
    system = build_system(recipe, lr_scale=options["batch"] / 256)
    if side == "embed_all":
        system.masker.needs_embeddings = True
    return recipe, system


def floor(side: str, ratio: float, options: dict[str, Any]) -> dict[str, float]:
    """Count a step's giga-multiply-accumulates per clip: `autoencoder` and `sampler`.

    A backward pass takes two forward passes. Missing are norms, softmax and the optimizers' work,
    which reads and writes every weight but multiplies few.
    """
    import torch

    from tatscli.nn.flops import recomputed_trajectory_macs

    with torch.device("meta"):
        _, system = build(side, ratio, options)
    encoder, masker = system.encoder, system.masker
    visible, tokens = masker.visible, encoder.tokens
    head = system.autoencoder.head.macs(visible, tokens - visible)
    sampler = 3 * masker.macs()
    if masker.needs_embeddings:
        passes = 2 if masker.reaches_encoder else 1
        sampler += passes * encoder.macs(0, embedded=tokens)
    mask = SIDES[side]
    if mask["kind"] == "tats":
        attention = masker.policy.trunk.attn
        sampler += recomputed_trajectory_macs(
            tokens, mask["width"], attention.num_heads, attention.slices, kept=attention.keeps
        )
    autoencoder = 3 * (encoder.macs(visible) + head)
    return {"visible": visible, "autoencoder": autoencoder / 1e9, "sampler": sampler / 1e9}


@cache
def prepared(side: str, ratio: float, flags: tuple[tuple[str, Any], ...]) -> Callable[[], None]:
    """Build a side once in its process and return its training step."""
    import torch

    from tatscli.data.normalize import standardize, to_unit
    from tatscli.engine.device import autocast
    from tatscli.engine.optim import build_optimizer
    from tatscli.masking.insight import mask_insight
    from tatscli.masking.plan import gather_tokens

    options = dict(flags)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    device, dtype = torch.device(options["device"]), getattr(torch, options["dtype"])
    recipe, system = build(side, ratio, options)
    system.to(device)
    encoder, masker = system.encoder, system.masker
    model = system.autoencoder.train()
    masker.train()
    forward = torch.compile(model) if options["compile"] else model
    optimizer = build_optimizer(model, recipe.optim)
    shape = (options["batch"], 3, options["frames"], options["size"], options["size"])
    video = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    generator = torch.Generator().manual_seed(0)

    def loss() -> torch.Tensor:
        masker.schedule(500, 1000)  # past the warm-up
        unit_BCTHW = to_unit(video)
        cubes_BNP = encoder.cubes(standardize(unit_BCTHW, recipe.data.mean, recipe.data.std))
        with torch.set_grad_enabled(masker.reaches_encoder):
            state = encoder.embed(cubes_BNP) if masker.needs_embeddings else cubes_BNP
        plan = masker.plan(state, generator=generator)
        error_BM = torch.zeros_like(plan.predict_BM, dtype=torch.float32)
        predictions = forward(cubes_BNP, plan.visible_BK, plan.predict_BM)
        for prediction_BMC, target in zip(predictions, system.targets, strict=True):
            target_BMC = gather_tokens(target.of(unit_BCTHW), plan.predict_BM)
            error_BM = error_BM + target.weight * target.error(prediction_BMC, target_BMC)
        masker.learn(plan, error_BM.detach())
        mask_insight(plan, grid=recipe.grid)
        result = error_BM.mean()
        if masker.token_gradient_BND is not None:
            pull = (state * masker.token_gradient_BND).sum()
            result = result + pull - pull.detach()
        return result

    def step() -> None:
        with autocast(device, dtype):
            result = loss()
        result.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def timed(task: tuple[str, float, tuple[tuple[str, Any], ...]]) -> float:
    """Take one step and return its seconds."""
    step = prepared(*task)
    clock = time.perf_counter if dict(task[2])["device"] == "cuda" else time.process_time
    started = clock()
    step()
    return clock() - started


def peak_mib(task: tuple[str, float, tuple[tuple[str, Any], ...]]) -> float:
    """Build a side, take two steps, and return the peak memory; needs a fresh process."""
    import torch

    from tests.benchmarks.bench_trajectory import resident_kib

    if dict(task[2])["device"] == "cuda":
        for _ in range(2):
            prepared(*task)()
        return torch.cuda.max_memory_allocated() / 2**20
    tiny = dict(task[2]) | {"model": "nano", "size": 32}
    prepared(task[0], 0.75, tuple(tiny.items()))()  # libraries load code at first use
    before = resident_kib("VmRSS")
    for _ in range(2):
        prepared(*task)()
    return (resident_kib("VmHWM") - before) / 1024


def measure(ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """Compare the sides at one ratio."""
    from tatscli.masking import MASKERS

    sides = [side for side in options["sides"] if SIDES[side]["kind"] in MASKERS]
    missing = {side: "skipped: no such mask" for side in options["sides"] if side not in sides}
    least = {side: floor(side, ratio, options) for side in sides}
    total = {side: one["autoencoder"] + one["sampler"] for side, one in least.items()}
    flags = tuple(options.items())
    tasks = {side: (side, ratio, flags) for side in sides}
    spawn = multiprocessing.get_context("spawn")
    pools = {side: spawn.Pool(1) for side in sides}
    peak: dict[str, float] = {}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for side, pool in pools.items():
        peak[side] = pool.apply(peak_mib, (tasks[side],))  # its steps warm up, too
    for _ in range(options["rounds"]):
        for side, pool in pools.items():
            taken[side].append(pool.apply(timed, (tasks[side],)))
    for pool in pools.values():
        pool.terminate()
    seconds = {side: statistics.median(values) for side, values in taken.items()}
    first = sides[0]
    return missing | {
        side: {
            "visible": least[side]["visible"],
            "gmac": {key: round(least[side][key], 1) for key in ("autoencoder", "sampler")},
            "seconds": round(seconds[side], 3),
            "peak_mib": round(peak[side]),
            "ratio": {
                "predicted": round(total[side] / total[first], 3),
                "seconds": round(seconds[side] / seconds[first], 3),
                "peak_mib": round(peak[side] / peak[first], 3),
            },
        }
        for side in sides
    }


def main() -> None:
    """Measure every ratio and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--model", default="base")
    for name, default in {"frames": 16, "size": 224, "batch": 1, "rounds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    options = vars(parser.parse_args())
    ratios, settings = options.pop("ratios"), dict(options)
    options["sides"] = tuple(options["sides"])
    result = {str(ratio): measure(ratio, options) for ratio in ratios}
    print(json.dumps({"settings": settings, "ratios": result}, indent=2))


if __name__ == "__main__":
    main()
