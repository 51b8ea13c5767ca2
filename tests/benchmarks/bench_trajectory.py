"""Time and memory of trajectory attention, forward and backward, over the length of the clip.

    python tests/benchmarks/bench_trajectory.py --width 768 --heads 12
    python tests/benchmarks/bench_trajectory.py --slices 8 16 32 64 --repeats 3

Three forms: `textbook`; `kept`, which keeps trajectory tokens for the backward pass, the default
on short clips, and where they are small folded queries and pooled tokens, too; `chunked`, which
finds all of these again, the default on long clips.

Prints one JSON object: for each length the floor, medians in seconds, peak memory above weights
and inputs in MiB, and the ratios of the first form to the others. The forms take turns in one
process for time, and have a process each for memory. A form whose floor of memory exceeds
`--limit-gib` is skipped.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FORMS = ("textbook", "kept", "chunked")


def parts(form: str, options: dict[str, Any]) -> tuple[Callable[[Any], Any], Any]:
    """Return the attention of one form, and its input."""
    import torch

    from tatscli.nn.trajectory import TrajectoryAttention
    from tests.nn.trajectory_reference import textbook

    device, slices = options["device"], options["slices"]
    torch.manual_seed(0)
    attention = TrajectoryAttention(options["width"], options["heads"], slices)
    attention.keeps = form == "kept"
    attention = attention.to(device)
    shape = options["batch"], slices * options["sites"], options["width"]
    tokens = torch.randn(shape, device=device, requires_grad=True)
    return (lambda x: textbook(attention, x)[0]) if form == "textbook" else attention, tokens


def step(form: str, options: dict[str, Any]) -> Callable[[], None]:
    """Make a function that runs one form forward and backward and waits for the device."""
    import torch

    device, dtype = options["device"], getattr(torch, options["dtype"])
    torch.set_num_threads(options["threads"])
    attend, tokens = parts(form, options)

    def run() -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            out = attend(tokens)
        out.float().square().mean().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def peak_mib(form: str, options: dict[str, Any]) -> float:
    """Return the peak memory of one form above its weights and inputs; needs a fresh process.

    Linux lets a process forget its peak, so what libraries load at first use is left out.
    """
    import torch

    step(form, options | {"sites": 2})()
    run = step(form, options)
    if options["device"] == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_kib("VmRSS")
    run()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(line: str) -> int:
    """Return a line of this process's status: VmRSS is its memory, VmHWM the peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(entry for entry in status if entry.startswith(line)).split()[1])


def seconds(forms: list[str], options: dict[str, Any]) -> dict[str, float]:
    """Return the median time of each form, taking turns.

    On the CPU it is the processor time of all threads: other programs do not lengthen that.
    """
    clock = time.perf_counter if options["device"] == "cuda" else time.process_time
    runs = {form: step(form, options) for form in forms}
    taken: dict[str, list[float]] = {form: [] for form in forms}
    for repeat in range(options["repeats"] + 1):
        for form, run in runs.items():
            started = clock()
            run()
            if repeat:  # the first round warms up
                taken[form].append(clock() - started)
    return {form: round(statistics.median(values), 3) for form, values in taken.items()}


def floor(options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Count the multiply-accumulates and the bytes that the forms cannot do without.

    Multiply-accumulates are torch's count of forward and backward pass, with what is done again.
    Bytes: scores and their softmax of the textbook form, and its trajectory tokens, keys and
    values; trajectory tokens kept, and where they are small folded queries and pooled tokens; those
    of a chunk, with its folded queries and pooled tokens. Every form has queries, keys and values
    besides, and gradients of all of these.
    """
    from tatscli.nn.recompute import KEPT_VALUES
    from tatscli.nn.trajectory import CHUNK

    width, heads, slices = (options[key] for key in ("width", "heads", "slices"))
    tokens = slices * options["sites"]
    number = 4 if options["dtype"] == "float32" else 2
    paths, followed = tokens * slices * width, 2 * tokens * heads * width
    small = options["batch"] * (paths + followed) < KEPT_VALUES
    held = {
        "textbook": 2 * heads * tokens**2 + 3 * paths,
        "kept": paths + small * followed,
        "chunked": CHUNK * options["sites"] * (slices + 2 * heads) * width,
    }
    qkv = 3 * tokens * width
    return {
        form: {
            "gmac": round(gmac(form, options), 1),
            "mib": round((held[form] + qkv) * number * options["batch"] / 2**20, 1),
        }
        for form in FORMS
    }


def gmac(form: str, options: dict[str, Any]) -> float:
    """Count the giga-multiply-accumulates of one form, forward and backward."""
    from tests.nn.counting import counted_macs

    attend, tokens = parts(form, options | {"device": "meta"})
    return counted_macs(lambda: attend(tokens).sum().backward(), gradients=True) / 1e9


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Compare the forms at one length."""
    least = floor(options)
    limit = options["limit_gib"] * 1024
    forms = [form for form in FORMS if least[form]["mib"] <= limit]
    peak = {}
    # Freed memory is to go back at once, or the peak would be glibc's leftovers of earlier chunks.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    for form in forms:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak[form] = round(pool.apply(peak_mib, (form, options)), 1)
    forms = [form for form in forms if peak[form] <= limit]
    taken = seconds(forms, options)
    return {
        "slices": options["slices"],
        "tokens": options["slices"] * options["sites"],
        "floor": least,
        "peak_mib": peak,
        "seconds": taken,
        "ratio": {
            form: {
                "seconds": round(taken[forms[0]] / taken[form], 2),
                "peak_mib": round(peak[forms[0]] / peak[form], 2),
            }
            for form in forms[1:]
        },
    }


def main() -> None:
    """Measure all forms at every length and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {
        "width": 384,
        "heads": 8,
        "sites": 196,
        "batch": 1,
        "repeats": 5,
        "threads": 1,
        "limit-gib": 8,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--slices", type=int, nargs="+", default=[8])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options = vars(parser.parse_args())
    lengths = [measure(options | {"slices": slices}) for slices in options["slices"]]
    print(json.dumps({"settings": options, "lengths": lengths}, indent=2))


if __name__ == "__main__":
    main()
