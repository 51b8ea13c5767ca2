"""What the learned samplers add to a training step: time and peak memory against `tube`.

    python tests/benchmarks/bench_sampler.py
    python tests/benchmarks/bench_sampler.py --device cuda --dtype bfloat16 --compile --batch 16

A step is that of the training loop (`steps.py`), from uint8 frames in memory to the updated
weights, on ViT-B with 16 frames of 224 x 224. `embed_all` is `tube` made to embed every patch, as a
learned sampler needs. Tubes show whole sites, so their count of visible tokens is the nearest
possible.

Prints one JSON object: the floor, which is multiply-accumulates counted by torch and their ratio to
`tube`; then medians over rounds in which the sides take turns, each in a process of its own, and
peak memory above what the process takes before it builds the system, in processes where freed
memory goes back at once. On the CPU seconds are processor time: other programs hardly lengthen
that.

    python tests/benchmarks/bench_sampler.py --batch 4 --live --sides tube tats_384_kept tats_384

The sides that end in `_kept` keep the sampler's graph until the backward pass. `--live` counts the
bytes that torch holds, at rest and at the peak, in further processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.steps import Steps, counted, noise

SAMPLERS: dict[str, dict[str, Any]] = {
    "adamae": {"kind": "adamae"},
    "tats_384": {"kind": "tats", "width": 384, "epochs": 1},
    "tats_768": {"kind": "tats", "width": 768, "epochs": 1},
}
SIDES = {"tube": {"kind": "tube"}, "embed_all": {"kind": "tube"}, **SAMPLERS}
KEPT = {f"{side}_kept": mask for side, mask in SAMPLERS.items()}
"""The same with the sampler's graph kept until the backward pass, not computed again."""


def build(side: str, ratio: float, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return the recipe and the system of one side."""
    from tatscli.recipe.schema import Recipe
    from tatscli.system.system import build_system

    recipe = Recipe.model_validate(
        {
            "data": {"store": "unused", "frames": options["frames"], "size": options["size"]},
            "model": {"size": options["model"]},
            "mask": (SIDES | KEPT)[side] | {"ratio": ratio},
            "run": {"compile": options.get("compile", False)},
        }
    )
    system = build_system(recipe)
    if side == "embed_all":
        plan = system.masker.plan

        def after_embedding(clip: Any, draws: Any) -> Any:
            assert len(clip.tokens_BND)
            return plan(clip, draws)

        system.masker.plan = after_embedding
    if side in KEPT:
        forward = system.masker.policy.forward
        system.masker.policy.forward = lambda *given, later=False: forward(*given)
    return recipe, system


def floor(side: str, ratio: float, options: dict[str, Any]) -> dict[str, float]:
    """Count a step's giga-multiply-accumulates per clip: `autoencoder` and `sampler`."""
    import torch

    with torch.device("meta"):
        recipe, system = build(side, ratio, options)
    counts = counted(recipe, system, clips=options["batch"])
    return {
        "visible": system.masker.visible,
        "autoencoder": counts["autoencoder"] / 2e9,
        "sampler": (counts["whole"] - counts["autoencoder"]) / 2e9,
    }


@cache
def prepared(side: str, ratio: float, flags: tuple[tuple[str, Any], ...]) -> Callable[[], None]:
    """Build a side once in its process and return its training step."""
    import torch

    options = dict(flags)
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    recipe, system = build(side, ratio, options)
    batch = noise(recipe, options["batch"])
    return Steps(recipe, system, batch, device=options["device"], dtype=options["dtype"])


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


def live_mib(task: tuple[str, float, tuple[tuple[str, Any], ...]]) -> dict[str, int]:
    """Take two steps and return what torch holds on the CPU at rest and at the peak, to the byte.

    Counted are its allocations as its profiler notes them: no library, no block given back late.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            prepared(*task)()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    notes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = list(accumulate(size for _, size in notes))
    return {"rest": round(held[-1] / 2**20), "peak": round(max(held) / 2**20)}


def measure(ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """Compare the sides at one ratio."""
    from tatscli.masking import MASKERS

    sides = [side for side in options["sides"] if (SIDES | KEPT)[side]["kind"] in MASKERS]
    missing = {side: "skipped: no such mask" for side in options["sides"] if side not in sides}
    least = {side: floor(side, ratio, options) for side in sides}
    total = {side: one["autoencoder"] + one["sampler"] for side, one in least.items()}
    flags = tuple(options.items())
    tasks = {side: (side, ratio, flags) for side in sides}
    # Freed memory goes back at once, so that the peak is of what is needed together.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    peak = {side: fresh(peak_mib, tasks[side]) for side in sides}
    del os.environ["MALLOC_MMAP_THRESHOLD_"]  # it would slow down what is timed
    spawn = multiprocessing.get_context("spawn")
    pools = {side: spawn.Pool(1) for side in sides}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options["rounds"] + 1):
        for side, pool in pools.items():
            seconds = pool.apply(timed, (tasks[side],))
            if number:  # the first round builds and warms up
                taken[side].append(seconds)
    for pool in pools.values():
        pool.terminate()
    live = {side: fresh(live_mib, tasks[side]) for side in sides if options["live"]}
    middle = {side: statistics.median(values) for side, values in taken.items()}
    first = sides[0]
    return missing | {
        side: {
            "visible": least[side]["visible"],
            "gmac": {key: round(least[side][key], 1) for key in ("autoencoder", "sampler")},
            "seconds": round(middle[side], 3),
            "peak_mib": round(peak[side]),
            **({"live_mib": live[side]} if live else {}),
            "ratio": {
                "predicted": round(total[side] / total[first], 3),
                "seconds": round(middle[side] / middle[first], 3),
                "peak_mib": round(peak[side] / peak[first], 3),
                **({"live": round(live[side]["peak"] / live[first]["peak"], 3)} if live else {}),
            },
        }
        for side in sides
    }


def fresh(work: Callable[[Any], Any], task: Any) -> Any:
    """Run a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (task,))


def main() -> None:
    """Measure every ratio and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=[*SIDES, *KEPT])
    parser.add_argument("--model", default="base")
    for name, default in {"frames": 16, "size": 224, "batch": 1, "rounds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--live", action="store_true", help="also count torch's own allocations")
    options = vars(parser.parse_args())
    ratios, settings = options.pop("ratios"), dict(options)
    options["sides"] = tuple(options["sides"])
    result = {str(ratio): measure(ratio, options) for ratio in ratios}
    print(json.dumps({"settings": settings, "ratios": result}, indent=2))


if __name__ == "__main__":
    main()
