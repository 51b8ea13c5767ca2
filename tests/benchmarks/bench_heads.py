"""What heads and targets cost in a training step: time and peak memory against VideoMAE's.

    python tests/benchmarks/bench_heads.py
    python tests/benchmarks/bench_heads.py --model small --rounds 1
    python tests/benchmarks/bench_heads.py --sides decoder regressor_1_half --rounds 3
    python tests/benchmarks/bench_heads.py --sides decoder shared_codes shared_codes_cached
    python tests/benchmarks/bench_heads.py --sides    # counts alone

A step is that of the training loop (`steps.py`), from uint8 frames in memory to the updated
weights: 16 frames of 224 x 224, tube 0.9, float32. `decoder` is VideoMAE: four blocks, half as wide
as the encoder, and pixels. `decoder_both` adds the difference of frames, by a second decoder.
`regressor_both` is MAM2's shape: four blocks of cross-attention as wide as the encoder, then a
decoder of four blocks for each target, over hidden tokens alone. The other sides are smaller forms
of that: fewer blocks in the regressor (`_2`, `_1`), a block in each decoder (`_thin`), half of the
hidden tokens predicted (`_half`). `_codes` puts the codes of `tokenizer/vq` (untrained, which costs
the same) in the place of pixels, both frames of a cube, `_middle` one; the tokenizer runs in every
step, or (`_cached`) its codes came with the clip. `shared_` has one decoder for both targets.

Prints one JSON object. Counts of all sides: floating-point operations of a step, by torch, and of a
forward pass in encoder and head; parameters, and MiB of weights, gradients and moments; MiB of
activations that a forward pass keeps for the backward pass. Of the sides asked for, medians over
rounds in which they take turns in one process, processor time; and peak resident memory
(VmHWM of Linux), each in a process of its own that gives freed memory back at once: `whole` above
what the process takes before the system is built, `step` above what it takes with the system built,
so without the weights. Ratios are to the first side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine, milliseconds
from tests.benchmarks.bench_trajectory import resident_kib
from tests.benchmarks.measure import load
from tests.benchmarks.steps import Steps, counted, noise

PIXELS = [{"kind": "pixels"}]
BOTH = [*PIXELS, {"kind": "difference"}]
CODER = "CODER"  # stands for the folder of the tokenizer, made when needed


def codes(**more: Any) -> list[dict[str, Any]]:
    """Return MAM2's targets."""
    source = {"kind": "run", "path": CODER}
    return [{"kind": "codes", "tokenizer": source} | more, {"kind": "difference"}]


HALF = {"kind": "running_cell"}


def side(head: str, targets: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    """Return the sections of a recipe; `predict` apart, the rest goes to the head."""
    predict = more.pop("predict", {"kind": "all"})
    return {"head": {"kind": head} | more, "targets": targets, "predict": predict}


SIDES: dict[str, dict[str, Any]] = {
    "decoder": side("decoder", PIXELS),
    "decoder_both": side("decoder", BOTH),
    "regressor_both": side("regressor", BOTH),
    "regressor": side("regressor", PIXELS),
    "regressor_2": side("regressor", BOTH, regressor_depth=2),
    "regressor_1": side("regressor", BOTH, regressor_depth=1),
    "regressor_1_thin": side("regressor", BOTH, regressor_depth=1, depth=1),
    "regressor_half": side("regressor", BOTH, predict=HALF),
    "regressor_2_half": side("regressor", BOTH, regressor_depth=2, predict=HALF),
    "regressor_1_half": side("regressor", BOTH, regressor_depth=1, predict=HALF),
    "regressor_1_thin_half": side("regressor", BOTH, regressor_depth=1, depth=1, predict=HALF),
    "decoder_both_half": side("decoder", BOTH, predict=HALF),
    "regressor_codes": side("regressor", codes()),
    "decoder_codes": side("decoder", codes()),
    "shared_codes": side("decoder", codes(), shared=True),
    "shared_codes_cached": side("decoder", codes(cached=True), shared=True),
    "shared_codes_middle": side("decoder", codes(frames="middle"), shared=True),
    "regressor_shared_codes": side("regressor", codes(), shared=True),
    "regressor_1_shared_codes": side("regressor", codes(), regressor_depth=1, shared=True),
    "regressor_1_shared_codes_half": side(
        "regressor", codes(), regressor_depth=1, shared=True, predict=HALF
    ),
}
RATIOS = ("gflop", "parameters", "kept_mib")
MEASURED = ("decoder", "decoder_both", "regressor_both")


def recipe_of(name: str, options: dict[str, Any]) -> Any:
    """Return the recipe of a side."""
    from tatscli.recipe.schema import Recipe

    data = {"store": "unused", "frames": options["frames"], "size": options["size"]}
    text = json.dumps(
        {
            "data": data | {"crop": "centre"},
            "model": {"size": options["model"]},
            "mask": {"kind": "tube", "ratio": 0.9},
            **SIDES[name],
        }
    )
    return Recipe.model_validate_json(text.replace(CODER, options["coder"]))


def clips(recipe: Any, system: Any, count: int) -> Any:
    """Return clips of noise, with noise for codes where a target reads them from the store."""
    import torch

    batch = noise(recipe, count)
    _, rows, columns = recipe.grid
    shape = (count, recipe.data.frames, rows, columns)
    known = {name: torch.randint(0, 1024, shape) for name in system.cached_codes}
    return replace(batch, codes=known)


def prepared(name: str, options: dict[str, Any]) -> Steps:
    """Build a side and return its training."""
    import torch

    from tatscli.system.system import build_system

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    recipe = recipe_of(name, options)
    system = build_system(recipe)
    return Steps(recipe, system, clips(recipe, system, options["batch"]))


def kept_mib(name: str, options: dict[str, Any]) -> float:
    """Return the memory of what a forward pass keeps for the backward pass, weights apart."""
    import torch

    from tatscli.draws import Draws
    from tatscli.system.system import build_system

    recipe = recipe_of(name, options)
    system = build_system(recipe).train()
    weights = {one.untyped_storage().data_ptr() for one in system.autoencoder.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = clips(recipe, system, options["batch"])
    clip = system.clip(batch.video_BCTHW, codes=batch.codes)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = system.errors(clip, Draws(0)).loss
    assert loss.requires_grad  # the graph lives until here, so no memory is counted twice
    return sum(kept.values()) / 2**20


def counts(name: str, options: dict[str, Any]) -> dict[str, float]:
    """Count operations, parameters and memory of a side."""
    from tatscli.system.cost import count_parameters, system_cost

    recipe = recipe_of(name, options)
    system, forward = system_cost(recipe)
    parameters = count_parameters(system.autoencoder)
    return {
        "gflop": options["batch"] * counted(recipe)["whole"] / 1e9,
        "forward_encoder": options["batch"] * forward["encoder"] / 1e9,
        "forward_head": options["batch"] * forward["head"] / 1e9,
        "parameters": parameters,
        "state_mib": 16 * parameters / 2**20,  # weight, gradient and two moments in float32
        "kept_mib": kept_mib(name, options),
    }


def peaks(name: str, options: dict[str, Any]) -> dict[str, float]:
    """Take two steps and return peaks of memory in MiB; needs a fresh process."""
    import torch

    from tatscli.system.system import build_system

    torch.set_num_threads(options["threads"])
    tiny = prepared(name, options | {"model": "nano", "size": 64})
    tiny()  # libraries load code at first use
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_kib("VmRSS")
    torch.manual_seed(0)
    recipe = recipe_of(name, options)
    system = build_system(recipe)
    batch = clips(recipe, system, options["batch"])
    built = resident_kib("VmRSS")
    step = Steps(recipe, system, batch)
    for _ in range(2):
        step()
    peak = resident_kib("VmHWM")
    return {"whole": (peak - before) / 1024, "step": (peak - built) / 1024}


def measure(names: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Measure sides against the first of them."""
    # Freed memory is to go back at once, or the peak would be glibc's leftovers.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    spawn, peak = multiprocessing.get_context("spawn"), {}
    for name in names:
        with spawn.Pool(1) as pool:
            peak[name] = pool.apply(peaks, (name, options))
    steps: dict[str, Callable[[], Any]] = {name: prepared(name, options) for name in names}
    taken = milliseconds(steps, rounds=options["rounds"], calls=1, device="cpu")
    first = names[0]
    return {
        name: {
            "seconds": {clock: round(one / 1000, 3) for clock, one in taken[name].items()},
            "peak_mib": {kind: round(one) for kind, one in peak[name].items()},
            "ratio": {
                "seconds": round(taken[name]["cpu"] / taken[first]["cpu"], 3),
                **{
                    f"peak_{kind}": round(one / peak[first][kind], 3)
                    for kind, one in peak[name].items()
                },
            },
        }
        for name in names
    }


def main() -> None:
    """Count all sides, measure some, and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", nargs="*", default=list(MEASURED), choices=list(SIDES))
    parser.add_argument("--model", default="base")
    for name, default in {"frames": 16, "size": 224, "batch": 1, "rounds": 5, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    import torch

    from tatscli.recipe.load import load_recipe
    from tests.tokenizer.saved import save_tokenizer

    torch.set_num_threads(options["threads"])
    with tempfile.TemporaryDirectory() as folder:
        coder = load_recipe("tokenizer/vq").recipe
        options["coder"] = str(save_tokenizer(Path(folder), coder.tokenizer, size=224))
        compare(options)


def compare(options: dict[str, Any]) -> None:
    """Count, measure, print."""
    names, settings = options.pop("sides"), dict(options)
    result: dict[str, Any] = {
        "settings": {"sides": names, **settings},
        "machine": machine("cpu"),
        "load_before": load(),
    }
    found = {name: counts(name, options) for name in SIDES}
    plain = found["decoder"]
    result["counts"] = {
        name: {key: round(value, 1) for key, value in one.items()}
        | {"ratio": {key: round(one[key] / plain[key], 3) for key in one if key in RATIOS}}
        for name, one in found.items()
    }
    if names:
        result["measured"] = measure(names, options)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
