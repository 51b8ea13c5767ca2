"""A whole training step on this machine: against transformers, compiled, and in bf16.

    python tests/benchmarks/bench_engine.py
    python tests/benchmarks/bench_engine.py --sides ours compiled --model small --batches 4
    python tests/benchmarks/bench_engine.py --sides ours ours_bf16 --batches 4
    python tests/benchmarks/bench_engine.py --device cuda --dtype bfloat16 --batches 32 64 \\
        --sides ours compiled transformers

16 frames of 224 x 224, tube 0.9: from uint8 clips in memory to updated weights. Sides:

- `ours`: as `tats pretrain` takes steps, memory kept between them (`engine/allocator.py`);
- `ours_plain`: without that;
- `compiled`: with `run.compile`; `ours_bf16` and `compiled_bf16` in autocast to bf16;
- `transformers`: `VideoMAEForPreTraining` in its default form, the same sizes, the same
  standardised pixels as targets, fused AdamW, a new mask in every step; it measures no gradient
  norm and no metrics;
- `transformers_kept`: the same with our setting of the allocator.

Each side has a process of its own, and they take turns. In each one a large product in the side's
precision is timed in every round: the ceiling. With `--products` the very products of our step run
once more, attention among them, and nothing else: what is between them and the ceiling is their
shapes', what is between the step and them is everything else. Operations are counted by torch; what
flash attention does twice is not among them.

Prints one JSON object: medians, seconds of a step by the clock (`wall`) and in processor time
(`cpu`), of which `clock` is the one that ratios are taken of: `cpu` on a CPU with one thread, which
other programs disturb little, else `wall`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measure import load

SIDES = (
    "ours", "ours_plain", "compiled", "ours_bf16", "compiled_bf16", "transformers",
    "transformers_kept",
)  # fmt: skip

_HERE: dict[str, Any] = {}  # what lives in a side's process


def recipe_of(options: dict[str, Any], *, compiled: bool = False) -> Any:
    """Return ViT with tubes of 0.9."""
    from tatscli.recipe.load import load_recipe

    mask = "mask={kind: tube, ratio: 0.9}"
    size, run = f"model.size={options['model']}", f"run.compile={str(compiled).lower()}"
    return load_recipe("ssv2", [mask, size, run]).recipe


def theirs(options: dict[str, Any], dtype: Any) -> Callable[[], None]:
    """Make a step of transformers' model."""
    import torch
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    from tatscli.engine.device import autocast
    from tatscli.nn.vit import SIZES
    from tests.benchmarks.steps import noise

    recipe, batch = recipe_of(options), options["batch"]
    data, (slices, rows, columns) = recipe.data, recipe.grid
    width, depth, heads, inner = SIZES[options["model"]]
    device = torch.device(options["device"])
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=224,
        num_frames=data.frames,
        norm_pix_loss=True,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=inner,
        decoder_hidden_size=width // 2,
        decoder_num_attention_heads=heads // 2,
        decoder_intermediate_size=2 * width,
    )
    model = VideoMAEForPreTraining(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    video = noise(recipe, batch).video_BCTHW.to(device)
    mean, std = (torch.tensor(one, device=device)[:, None, None] for one in (data.mean, data.std))
    sites = rows * columns
    shown = sites // 10 + 1  # 20 of 196, as ours

    def step() -> None:
        pixels = (video.transpose(1, 2).float() / 255 - mean) / std
        hidden = torch.ones(batch, sites, dtype=torch.bool, device=device)
        hidden.scatter_(1, torch.rand(batch, sites, device=device).argsort(1)[:, :shown], False)
        with autocast(device, dtype):
            loss = model(pixels, bool_masked_pos=hidden.repeat(1, slices)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def prepare(side: str, options: dict[str, Any]) -> dict[str, Any]:
    """Build a side in this process, take its first steps and count its operations."""
    import torch

    from tatscli.engine.allocator import kept_memory
    from tatscli.engine.ceiling import known_peak
    from tatscli.system.system import build_system
    from tests.benchmarks.bench_step import products
    from tests.benchmarks.steps import Steps, counted, noise
    from tests.nn.counting import counted_macs

    torch.set_num_threads(options["threads"])
    torch.set_float32_matmul_precision("high")
    device = torch.device(options["device"])
    name = "bfloat16" if side.endswith("_bf16") else options["dtype"]
    dtype = getattr(torch, name)
    _HERE["stack"] = ExitStack()
    if side not in ("transformers", "ours_plain"):
        _HERE["stack"].enter_context(kept_memory(device))
    torch.manual_seed(0)
    if side.startswith("transformers"):
        flops = 2 * counted_macs(
            theirs(options | {"batch": 1, "device": "cpu"}, torch.float32), gradients=True
        )
        _HERE["step"] = theirs(options, dtype)
    else:
        recipe = recipe_of(options, compiled=side.startswith("compiled"))
        flops = counted(recipe)["whole"]
        _HERE["step"] = Steps(
            recipe,
            build_system(recipe),
            noise(recipe, options["batch"]),
            device=str(device),
            dtype=name,
        )
    began = time.perf_counter()
    for _ in range(2):
        _HERE["step"]()
    first = time.perf_counter() - began
    if side == "ours" and options["products"]:
        _HERE["products"] = products(_HERE["step"])
    large = 2048 if device.type == "cpu" else 8192
    _HERE["factors"] = torch.randn(2, large, large, device=device).to(dtype)
    _HERE["wait"] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    return {
        "gflop_per_clip": round(flops / 1e9, 2),
        "first_steps": round(first, 2),
        "peak_tflops": (known_peak(device, dtype) or 0) / 1e12 or None,
    }


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Call once, and return what it took by both clocks."""
    _HERE["wait"]()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    _HERE["wait"]()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def take(calls: int) -> dict[str, dict[str, float]]:
    """Take a round in this process: the large product, steps, and the products of a step."""
    import torch

    left, right = _HERE["factors"]
    with torch.no_grad():
        found = {"large": timed(lambda: left @ right)}
    one = [timed(_HERE["step"]) for _ in range(calls)]
    found["step"] = {clock: statistics.median(x[clock] for x in one) for clock in one[0]}
    if "products" in _HERE:
        with torch.no_grad():
            found["products"] = timed(_HERE["products"])
    return found


def losses() -> float | None:
    """Return the loss of our last steps."""
    return round(_HERE["step"].read()["loss"], 4) if hasattr(_HERE["step"], "read") else None


def measured(options: dict[str, Any], batch: int) -> dict[str, Any]:
    """Measure all sides with a batch."""
    options = options | {"batch": batch}
    clock = "cpu" if options["device"] == "cpu" and options["threads"] == 1 else "wall"
    with ExitStack() as stack:
        crews = {
            side: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            for side in options["sides"]
        }
        about = {side: crew.submit(prepare, side, options).result() for side, crew in crews.items()}
        rounds: dict[str, list[dict[str, dict[str, float]]]] = {side: [] for side in crews}
        for _ in range(options["rounds"]):
            for side, crew in crews.items():
                rounds[side].append(crew.submit(take, options["steps"]).result())
        ends = {side: crew.submit(losses).result() for side, crew in crews.items()}
    large = (2048 if options["device"] == "cpu" else 8192) ** 3 * 2
    found: dict[str, Any] = {"clock": clock}
    for side, taken in rounds.items():
        medians = {
            what: {one: statistics.median(x[what][one] for x in taken) for one in ("wall", "cpu")}
            for what in taken[0]
        }
        gflop = batch * about[side]["gflop_per_clip"]
        ceiling = large / 1e9 / medians["large"][clock]
        seconds = medians["step"][clock]
        peak = about[side]["peak_tflops"]
        found[side] = {
            **about[side],
            "step": {one: round(value, 4) for one, value in medians["step"].items()},
            "clips_per_second": round(batch / seconds, 3),
            "ceiling_gflops": round(ceiling, 1),
            "percent_of_ceiling": round(100 * gflop / ceiling / seconds, 1),
            "mfu_percent": None if peak is None else round(gflop / seconds / peak / 10, 1),
            "loss": ends[side],
        }
        if "products" in medians:
            alone = medians["products"][clock]
            found[side]["products"] = {
                "seconds": round(alone, 4),
                "percent_of_ceiling": round(100 * gflop / ceiling / alone, 1),
                "step_by_products": round(seconds / alone, 3),
            }
    first = next(iter(rounds))
    for side in list(rounds)[1:]:
        # Of each round, so that what slows the machine for a while slows both.
        ratio = [
            theirs["step"][clock] / ours["step"][clock]
            for ours, theirs in zip(rounds[first], rounds[side], strict=True)
        ]
        found[f"{side}_by_{first}"] = round(statistics.median(ratio), 3)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "transformers"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--model", default="base", choices=["small", "base", "large"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for name, default in {"rounds": 5, "steps": 1, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--products", action="store_true", help="they take as much memory again")
    options = vars(parser.parse_args())
    result: dict[str, Any] = {"settings": dict(options), "load_before": load()}
    if find_spec("transformers") is None:
        options["sides"] = [one for one in options["sides"] if "transformers" not in one]
        result["transformers"] = "skipped: not installed; `pip install -e '.[hf]'`"
    for batch in options["batches"]:
        result[f"batch {batch}"] = measured(options, batch)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
