"""What long clips cost: time and memory of a training step over frames and predicted tokens.

    python tests/benchmarks/bench_long.py
    python tests/benchmarks/bench_long.py --parts time memory
    python tests/benchmarks/bench_long.py --table

A step is that of the training loop (`steps.py`): tube 0.9, decoder of four blocks, pixels, batch 1,
float32, one thread. `predict: random` with 100, 50, 25 or 15 % of the clip's tokens, where 100
means all that are hidden. Attention is torch's fused form, as in training, or the plain one, which
writes every score down (`SDPBackend.MATH`).

`half` is half of a ViT-B at 224 x 224 in everything that decides: ViT-S at 160 x 160 has half its
width, half its heads in encoder and decoder, and 100 sites for 196. So attention has the same share
of the products, and the plain form fits into memory. `full` is ViT-B at 224 x 224 itself, where
that is possible.

Parts, one after the other:

- `time`: `half`, all settings. Settings of one length take turns in one process; processor time.
- `memory`: `half`, all settings, each in a process of its own that gives freed memory back at once:
  peak (VmHWM of Linux) of a step above what is there before it, optimiser's moments included.
- `masks`: `half` at 128 frames and 15 % with other masks of the same ratio; time and memory.
- `full`: ViT-B at 15 %, 64 and 128 frames, in turns with `Tokenizer.code` of two tokenizers; then
  once each 128 frames at 100 %, and a window of the published-like tokenizer.
- `state`: memory of `full`, also with `model.checkpointing`; gradients are there before the step,
  or short clips would show those alone.
- `flop`: operations of all of these, counted by torch, nothing computed.

Every figure is a line of `--out` as soon as it is there; a run that was interrupted goes on behind
the last. Another machine needs a file of its own. `--table` prints medians, ratios and what follows
for ViT-B in 80 GB (`long_tables.py`), and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine
from tests.benchmarks.bench_trajectory import resident_kib
from tests.benchmarks.long_settings import (
    ATTENTION,
    BUDGETS,
    CHEAP,
    FRAMES,
    MASKS,
    SCALES,
    TOKENIZERS,
    WINDOWS,
    Setting,
    built,
    counted_step,
    setting,
    sizes,
    step_of,
    tokenizer,
)
from tests.benchmarks.measure import load

PARTS = ("time", "memory", "masks", "full", "state", "flop")


class Figures:
    """Lines of a file, one a figure, of this machine and others.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine = machine("cpu")

    def lines(self) -> list[dict[str, Any]]:
        """Return all figures."""
        if not self.path.is_file():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def done(self, one: dict[str, Any]) -> bool:
        """Whether this machine has measured it."""
        whole = {**one, "machine": self.machine}
        return any(whole == {key: line.get(key) for key in whole} for line in self.lines())

    def add(self, one: dict[str, Any], **found: Any) -> None:
        """Write a figure down at once."""
        with self.path.open("a") as file:
            file.write(json.dumps({**one, **found, "load": load(), "machine": self.machine}) + "\n")
        print(json.dumps({**one, **found}), file=sys.stderr, flush=True)


Side = tuple[dict[str, Any], Callable[[], Any]]


def taken(
    part: str, out: Path, make: Callable[..., Iterator[Side]], given: tuple[int, ...], rounds: int
) -> None:
    """Let sides take turns and write down what each took: a line a side and round."""
    figures, sides = Figures(out), list(make(*given))
    for number in range(rounds):
        for one, call in sides:
            key = {"what": "time", "part": part, **one, "round": number}
            if figures.done(key):
                continue
            clocks = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
            figures.add(key, cpu=round(cpu, 4), wall=round(wall, 3))


def one_length(frames: int) -> Iterator[Side]:
    """Make the settings of one length, of one model; a step first, so that all code is loaded."""
    system, steps = built(setting("half", frames, BUDGETS[-1]))
    steps()
    for attention in ATTENTION:
        for budget in BUDGETS:
            one = setting("half", frames, budget, attention=attention)
            yield one, step_of(system, steps, one)


def masks() -> Iterator[Side]:
    """Make the settings of the masks."""
    for mask in MASKS:
        one = setting("half", 128, 15, mask=mask)
        yield one, step_of(*built(one), one)


def coding(name: str) -> Side:
    """Make the coding of a clip, or of one window of it, by a tokenizer."""
    coder, video = tokenizer(name)
    clip = video.repeat(1, 1, WINDOWS[name], 1, 1)
    return {"tokenizer": name, "windows": WINDOWS[name]}, lambda: coder.code(clip)


def vit_b() -> Iterator[Side]:
    """Make ViT-B at two lengths and tokenizers."""
    for frames in (64, 128):
        one = setting("full", frames, 15)
        yield one, step_of(*built(one), one)
    yield from map(coding, CHEAP)


def vit_b_all() -> Iterator[Side]:
    """Make what takes minutes: ViT-B that predicts all that is hidden, and the other tokenizer."""
    one = setting("full", 128, 100)
    yield one, step_of(*built(one), one)
    yield from (coding(name) for name in TOKENIZERS if name not in CHEAP)


def peak(one: Setting) -> float:
    """Return the peak of a step's memory in MiB; needs a fresh process."""
    import torch

    small = dict(one, scale="half", frames=4)
    step_of(*built(small, model="nano", size=64), small)()  # libraries load code at first use
    system, steps = built(one)
    step = step_of(system, steps, one)
    if one["gradients"]:
        for weight in system.autoencoder.parameters():
            weight.grad = torch.full_like(weight, 0)  # zeros_like would take no memory yet
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_kib("VmRSS")
    step()
    return (resident_kib("VmHWM") - before) / 1024


def memory(figures: Figures, settings: Iterator[Setting]) -> None:
    """Measure the memory of settings, each in a process of its own."""
    # Freed memory is to go back at once, or the peak would be glibc's leftovers.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tatscli.tasks.pretrain"])
    ensure_running()
    del os.environ["MALLOC_MMAP_THRESHOLD_"]  # it would slow down what is timed later
    for one in settings:
        key = {"what": "memory", **one}
        if not figures.done(key):
            with context.Pool(1) as pool:
                figures.add(key, mib=round(pool.apply(peak, (one,)), 1), **sizes(one))


def half_memory() -> Iterator[Setting]:
    """Name the settings of the curve."""
    for frames in FRAMES:
        for attention in ATTENTION:
            for budget in BUDGETS:
                yield setting("half", frames, budget, attention=attention)


def mask_memory() -> Iterator[Setting]:
    """Name the settings of the masks."""
    for mask in MASKS[1:]:  # the first is one of the curve's
        yield setting("half", 128, 15, mask=mask)


def state_memory() -> Iterator[Setting]:
    """Name the settings from which memory of ViT-B is worked out, and those that check it."""
    for again in (False, True):
        for attention in ATTENTION:
            for frames in (16, 32):
                for budget in (100, 15):
                    more = {"attention": attention, "checkpointing": again}
                    yield setting("full", frames, budget, gradients=True, **more)
    yield setting("full", 64, 15, gradients=True, attention="plain")
    for frames, budget in ((64, 15), (64, 100), (128, 15)):
        yield setting("full", frames, budget, gradients=True)


def flop(figures: Figures) -> None:
    """Count the operations of steps and tokenizers."""
    from tatscli.system.cost import count_flops

    for scale in SCALES:
        for frames in FRAMES:
            for budget in BUDGETS:
                one = setting(scale, frames, budget)
                if not figures.done({"what": "flop", **one}):
                    count = counted_step(one)
                    figures.add({"what": "flop", **one}, gflop=round(count / 1e9, 2))
    for name in TOKENIZERS:
        coder, video = tokenizer(name, device="meta")
        found = {
            "encoder": count_flops(lambda coder=coder, video=video: coder._embed(video)),
            "scorer": count_flops(lambda coder=coder, video=video: coder.scorer(video)),
        }
        key = {"what": "flop", "tokenizer": name, "windows": 1}
        if not figures.done(key):
            figures.add(key, **{part: round(count / 1e9, 2) for part, count in found.items()})


def measure(part: str, out: Path, rounds: int) -> None:
    """Measure one part."""
    turns: dict[str, list[tuple[Callable[..., Iterator[Side]], tuple[int, ...], int]]] = {
        "time": [(one_length, (frames,), rounds) for frames in FRAMES],
        "masks": [(masks, (), rounds)],
        "full": [(vit_b, (), rounds), (vit_b_all, (), 1)],
    }
    memories = {"memory": half_memory, "masks": mask_memory, "state": state_memory}
    for make, given, times in turns.get(part, []):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(taken, (part, out, make, given, times))
    if part in memories:
        memory(Figures(out), memories[part]())
    if part == "flop":
        flop(Figures(out))


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/figures/long.json"))
    parser.add_argument("--table", action="store_true", help="print, measure nothing")
    options = parser.parse_args()
    if not options.table:
        for part in options.parts:
            measure(part, options.out, options.rounds)
    from tests.benchmarks.long_tables import tables

    print(tables(Figures(options.out).lines()))


if __name__ == "__main__":
    main()
