"""Time and memory of folded against textbook trajectory attention, forward and backward.

    python tests/benchmarks/bench_trajectory.py --width 384 --slices 8 --sites 196

Prints one JSON object: medians in seconds, peak memory above the inputs in MiB, and the ratios of
textbook to folded. The forms take turns in one process for time, and have a process each for
memory, because a process's peak never falls on the CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FORMS = ("textbook", "folded")


def step(form: str, options: dict[str, Any]) -> Callable[[], None]:
    """Make a function that runs one form forward and backward and waits for the device."""
    import torch

    from tatscli.nn.trajectory import TrajectoryAttention
    from tests.nn.trajectory_reference import textbook

    device, dtype = options["device"], getattr(torch, options["dtype"])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    attention = TrajectoryAttention(options["width"], options["heads"], options["slices"])
    attention = attention.to(device)
    shape = options["batch"], options["slices"] * options["sites"], options["width"]
    tokens = torch.randn(shape, device=device, requires_grad=True)

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            out = attention(tokens) if form == "folded" else textbook(attention, tokens)[0]
        out.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def peak_mib(form: str, options: dict[str, Any]) -> float:
    """Return the peak memory of one form above what its inputs take; needs a fresh process."""
    import torch

    run = step(form, options)
    cuda = options["device"] == "cuda"

    def peak() -> float:
        if cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before = peak()
    run()
    return peak() - before


def seconds(options: dict[str, Any]) -> dict[str, float]:
    """Return the median time of each form, taking turns.

    On the CPU it is the processor time of all threads: other programs do not lengthen that.
    """
    clock = time.perf_counter if options["device"] == "cuda" else time.process_time
    runs = {form: step(form, options) for form in FORMS}
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for repeat in range(options["repeats"] + 1):
        for form, run in runs.items():
            started = clock()
            run()
            if repeat:  # the first round warms up
                taken[form].append(clock() - started)
    return {form: statistics.median(values) for form, values in taken.items()}


def main() -> None:
    """Measure both forms and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {
        "width": 384,
        "heads": 8,
        "slices": 8,
        "sites": 196,
        "batch": 1,
        "repeats": 5,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = vars(parser.parse_args())
    result: dict[str, Any] = {"settings": options, "peak_mib": {}}
    # Memory goes first: a child begins with the peak its parent had when it forked.
    for form in FORMS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            result["peak_mib"][form] = pool.apply(peak_mib, (form, options))
    result["seconds"] = seconds(options)
    result["ratio"] = {
        key: round(result[key]["textbook"] / result[key]["folded"], 2)
        for key in ("seconds", "peak_mib")
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
