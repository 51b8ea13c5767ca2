"""Two processes with a thread each against one process with two, the same total batch.

    python tests/benchmarks/bench_ranks.py
    python tests/benchmarks/bench_ranks.py --parallel fsdp

Each side is a training of its own, `tats pretrain` under `torchrun` and alone, from a store of some
rendered videos whose decoded frames are kept in memory: tube 0.9, ViT-S, 16 frames of 112 x 112.
Its `metrics.jsonl` says how many clips it took in a second; the first line, in which everything
warms up, is left out. Both take turns.

Prints one JSON object: clips a second by the clock (median over the lines of all rounds), and the
ratio of two ranks to one process. On gloo, by `run.parallel`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.measure import load

ROOT = Path(__file__).resolve().parents[2]


def rendered_store(folder: Path, videos: int) -> Path:
    """Prepare a store of rendered videos."""
    from tests.clips import pan, render

    for number in range(videos):
        render(folder / "videos" / f"{number}.mp4", pan(frames=40, seed=number))
    subprocess.run(
        [sys.executable, "-m", "tatscli", "prepare", str(folder / "videos"),
         "--out", str(folder / "store"), "--quiet"],
        check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return folder / "store"


def train(ranks: int, store: Path, folder: Path, options: dict[str, Any]) -> list[float]:
    """Train, and return the clips a second of every line but the first."""
    batch, steps = options["batch"], options["steps"]
    epochs = 10_000
    overrides = [
        f"data.store={store}", "data.size=112", "data.sampling.stride=2", "data.workers=1",
        "data.split=null",
        "data.cache=ram", f"model.size={options['model']}", "mask={kind: tube, ratio: 0.9}",
        f"optim.total_batch={batch}", f"optim.batch_per_device={batch // ranks}",
        f"optim.epochs={epochs}", "run.device=cpu", f"run.max_steps={steps}", "run.log_every=2",
        f"run.save_every={epochs}",
    ]  # fmt: skip
    if options["parallel"] is not None and ranks > 1:
        overrides.append(f"run.parallel={options['parallel']}")
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = [*launcher, "tatscli", "pretrain", "ssv2", "--out", str(folder), "--quiet"]
    threads = str(options["threads"] // ranks)
    subprocess.run(
        [*command, *overrides],
        check=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)},
    )
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["clips_per_second"] for line in lines][1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parallel", help="`run.parallel` of the ranks, such as fsdp")
    parser.add_argument("--model", default="small")
    for name, default in {
        "ranks": 2, "threads": 2, "batch": 8, "steps": 12, "rounds": 3
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    result: dict[str, Any] = {"settings": options, "load_before": load()}
    rates: dict[int, list[float]] = {1: [], options["ranks"]: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = rendered_store(folder, videos=max(8, options["batch"]))
        for number in range(options["rounds"]):
            for ranks, found in rates.items():
                found += train(ranks, store, folder / f"run-{number}-{ranks}", options)
    one, many = (statistics.median(found) for found in rates.values())
    result |= {
        "one_process": round(one, 3),
        "ranks": round(many, 3),
        "ranks_by_one_process": round(many / one, 3),
        "load_after": load(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
