"""What planning a mask costs, and choosing what is predicted, against a training step.

    python tests/benchmarks/bench_masks.py
    python tests/benchmarks/bench_masks.py --device cuda --dtype bfloat16 --step-batches 32

Every mask that needs no training plans a batch, and every predict-selection chooses from a plan of
`mgm`, for clips of 16 x 224 x 224. The step is that of ViT-B with a tube mask of the same ratio,
from uint8 frames to the updated weights (`bench_sampler.py`). On a CPU a batch of 32 takes minutes:
the step is measured for small batches, and the line through the smallest and the largest is drawn
to the batch that is planned for. `everest` looks at the embeddings of all patches; making them is
not in its time, and `embed_gmac` counts it.

Prints one JSON object: milliseconds for a batch, medians over rounds in which the sides take turns,
by the clock and in processor time, and their share of the step. `operators` counts what one plan
dispatches, `kernels` those of them that work on data, `waits` how often the program waits for the
device. From `kernels` follows an estimate for GPUs, not a measurement: so many launches one after
the other, against a step that reaches the given speeds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tatscli.draws import Draws
from tests.benchmarks.bench_sampler import floor, prepared
from tests.benchmarks.measure import load
from tests.benchmarks.steps import moving

if TYPE_CHECKING:
    from tatscli.data.clip import Clip

LEARNED = ("adamae", "tats")
OWN_RATIO = ("everest",)  # 0.75 shown tokens would be all that it keeps
WIDTH, FRAMES, SIZE, PATCH, TUBELET = 768, 16, 224, 16, 2
GRID = (FRAMES // TUBELET, SIZE // PATCH, SIZE // PATCH)
TOKENS = GRID[0] * GRID[1] * GRID[2]
LAUNCH_US = 5.0
NO_WORK = ("aten._unsafe_view", "aten.empty", "aten._local_scalar_dense")


def clip_of(options: dict[str, Any]) -> Clip:
    """Make clips with given patch embeddings and motion; their pixels, which no plan reads, are
    one for each token."""
    import torch

    from tatscli.data.clip import Clip, ClipForm

    batch, device = options["batch"], options["device"]
    _, rows, columns = GRID
    motion = moving(batch, frames=FRAMES, rows=rows, columns=columns, patch=PATCH, device=device)
    tokens_BND = torch.randn(batch, TOKENS, WIDTH, device=device)
    pixels_BNP = torch.zeros(batch, TOKENS, 3, dtype=torch.uint8, device=device)
    form = ClipForm(GRID, tubelet=1, patch=1).to(device)
    return Clip(form, pixels_BNP, motion=motion, embed=lambda _: tokens_BND)


def mask_sides(ratio: float, options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the planning of a batch for every mask that needs no training."""

    from tatscli.masking import MASKERS, build_masker

    clip = clip_of(options)
    draws = Draws(0)
    sides = {}
    for kind in MASKERS:
        if kind in LEARNED:
            continue
        share = {} if kind in OWN_RATIO else {"ratio": ratio}
        section = section_of("mask", {"kind": kind} | share)
        masker = build_masker(section, grid=GRID, width=WIDTH).to(options["device"])
        sides[kind] = lambda masker=masker: masker.plan(clip, draws)
    return sides


def selection_sides(ratio: float, options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the choice from a plan of `mgm` for every predict-selection."""

    from tatscli.masking import build_masker
    from tatscli.masking.predict import PREDICT_RULES, build_predict

    clip = clip_of(options)
    draws = Draws(0)
    masker = build_masker(
        section_of("mask", {"kind": "mgm", "ratio": ratio}), grid=GRID, width=WIDTH
    ).to(options["device"])
    plan = masker.plan(clip, draws)
    sides = {}
    for kind in [kind for kind in PREDICT_RULES if kind != "tokenizer"]:  # it costs its network
        section = section_of("predict", {"kind": kind})
        selection = build_predict(section, form=clip.form, predicted=masker.predicted)
        selection.to(options["device"])
        sides[kind] = lambda selection=selection: selection.select(plan, clip, draws)
    return sides


def section_of(name: str, values: dict[str, Any]) -> Any:
    """Return one section of a recipe."""
    from tatscli.recipe.schema import Recipe

    whole = {"data": {"store": "unused"}, "mask": {"kind": "tube"}} | {name: values}
    return getattr(Recipe.model_validate(whole), name)


def milliseconds(
    sides: dict[str, Callable[[], Any]], *, rounds: int, calls: int, device: str
) -> dict[str, dict[str, float]]:
    """Return medians of what one call takes, by the clock and in processor time."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            wait()
            clocks = time.perf_counter(), time.process_time()
            for _ in range(calls):
                call()
            wait()
            wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
            if number:  # the first round warms up
                taken[name].append((1000 * wall / calls, 1000 * cpu / calls))
    return {
        name: {
            "wall": statistics.median(wall for wall, _ in runs),
            "cpu": statistics.median(cpu for _, cpu in runs),
        }
        for name, runs in taken.items()
    }


def training_step(ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """Measure a step for several batches and draw the line to the batch that is planned for."""
    measured = {}
    for batch in sorted(options["step_batches"]):
        names = ("device", "dtype", "threads", "compile")
        flags = {name: options[name] for name in names}
        flags |= {"model": "base", "frames": FRAMES, "size": SIZE, "batch": batch}
        step = prepared("tube", ratio, tuple(flags.items()))
        timed = milliseconds(
            {"step": step}, rounds=options["step_rounds"], calls=1, device=options["device"]
        )
        measured[batch] = timed["step"]
        del step
        prepared.cache_clear()
        gc.collect()
    few, many = min(measured), max(measured)
    drawn = {}
    for clock in ("wall", "cpu"):
        low, high = measured[few][clock], measured[many][clock]
        slope = (high - low) / (many - few) if many > few else high / many
        drawn[clock] = high + slope * (options["batch"] - many)
    return {
        "milliseconds": {batch: rounded(one) for batch, one in measured.items()},
        "milliseconds_at_batch": rounded(drawn),
        "_exact": drawn,
    }


def operators(call: Callable[[], Any]) -> dict[str, int]:
    """Count what a call dispatches."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[Any] = []

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.found.append(function)
            return function(*args, **(kwargs or {}))

    with Counter() as counter:
        call()
    return {
        "operators": len(counter.found),
        "kernels": sum(
            not one.is_view and not str(one).startswith(NO_WORK) for one in counter.found
        ),
        "waits": sum("_local_scalar_dense" in str(one) for one in counter.found),
    }


def compared(
    sides: dict[str, Callable[[], Any]], step: dict[str, float], options: dict[str, Any]
) -> dict[str, Any]:
    """Measure sides and hold them against the step."""
    taken = milliseconds(
        sides, rounds=options["rounds"], calls=options["calls"], device=options["device"]
    )
    return {
        name: {
            "milliseconds": rounded(one),
            "percent_of_step": {
                clock: round(100 * one[clock] / step[clock], 4) for clock in ("wall", "cpu")
            },
            **operators(sides[name]),
        }
        for name, one in taken.items()
    }


def estimate(masks: dict[str, Any], ratio: float, options: dict[str, Any]) -> dict[str, Any]:
    """Estimate the share of a step on a GPU: launches against products at given speeds."""
    counted = floor("tube", ratio, {"model": "base", "frames": FRAMES, "size": SIZE, "batch": 1})
    teraflop = 2 * counted["autoencoder"] * options["batch"] / 1000
    return {
        "what": "an estimate from counts, not measured on a GPU",
        "launch_us": LAUNCH_US,
        "step_teraflop": round(teraflop, 2),
        "plan_ms": {name: one["kernels"] * LAUNCH_US / 1000 for name, one in masks.items()},
        "step_ms_at_tflops": {
            speed: round(1000 * teraflop / speed, 1) for speed in options["tflops"]
        },
        "mgm_percent_at_tflops": {
            speed: round(masks["mgm"]["kernels"] * LAUNCH_US / 1e4 / (teraflop / speed), 2)
            for speed in options["tflops"]
        },
    }


def rounded(taken: dict[str, float]) -> dict[str, float]:
    """Return figures as they are printed."""
    return {clock: round(value, 3) for clock, value in taken.items()}


def machine(device: str) -> dict[str, Any]:
    """Say on what this runs."""
    import platform

    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratio", type=float, default=0.75)
    parser.add_argument("--step-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--tflops", type=int, nargs="+", default=[50, 100, 200, 400], help="for the estimate"
    )
    defaults = {"batch": 32, "rounds": 15, "calls": 3, "step-rounds": 3, "threads": 1}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true")
    options = vars(parser.parse_args())
    import torch

    torch.set_num_threads(options["threads"])
    ratio = options.pop("ratio")
    result: dict[str, Any] = {
        "settings": {"ratio": ratio, **options},
        "machine": machine(options["device"]),
        "load_before": load(),
    }
    step = training_step(ratio, options)
    exact = step.pop("_exact")
    masks = compared(mask_sides(ratio, options), exact, options)
    result |= {
        "step": step,
        "masks": masks,
        "selections": compared(selection_sides(ratio, options), exact, options),
        "embed_gmac": round(
            options["batch"] * TOKENS * WIDTH * 3 * TUBELET * PATCH * PATCH / 1e9, 1
        ),
        "gpu_estimate": estimate(masks, ratio, options),
        "load_after": load(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
