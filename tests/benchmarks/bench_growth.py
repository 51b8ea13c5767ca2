"""Memory and throughput of `tats prepare` as the number of videos grows.

Two thousand tiny videos go through two workers while the resident memory of all processes is
sampled; then stores of 10, 100 and 1,000 videos are made, each from nothing, and the last is
prepared again, which finds everything done.

Prints one JSON object: MiB in the first and the last quarter of the run, videos a second between
the first and the last result, by quarter and by size, and the seconds of the second run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import add_inputs_option, workplace
from tests.benchmarks.measure import Crew, load

_EVERY = 0.1  # seconds between two samples of memory
_SHARD = 4 << 20  # small, so that many shards are written


def tiny(inputs: Path, folder: Path, files: int) -> Path:
    """Fill a folder with videos of 16 frames at 96 x 64; some scenes, each of them many times."""
    from tests.clips import moving_patch, render

    folder.mkdir()
    for kind in range(8):
        path = inputs / f"tiny {kind}.mp4"
        if not path.exists():
            patches = moving_patch(frames=16, height=64, width=96, side=24, start=(8, 8), seed=kind)
            render(path, patches)
    for number in range(files):
        os.link(inputs / f"tiny {number % 8}.mp4", folder / f"{number:05d}.mp4")
    return folder


def run(folder: Path, *, out: Path, sample: bool) -> dict[str, Any]:
    """Prepare a folder; return when each result came and, if asked for, samples of memory."""
    from tatscli.console import Reporter
    from tatscli.store.pool import run_in_order
    from tatscli.store.prepare import prepare
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources

    begun = time.monotonic()
    done: list[float] = []
    samples: list[tuple[float, float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY):
            workers = [_resident(process) for process in _workers(os.getpid())]
            samples.append((time.monotonic() - begun, _resident(os.getpid()), sum(workers)))

    def noted(work: Callable[..., Any], jobs: Any) -> Iterator[Any]:
        for item in run_in_order(work, jobs, workers=2, timeout=60):
            done.append(time.monotonic() - begun)
            yield item

    watcher = threading.Thread(target=watch)
    if sample:
        watcher.start()
    try:
        report = prepare(
            find_sources(folder, dataset="folders"),
            out,
            Settings(),
            run=noted,  # type: ignore[arg-type]
            reporter=Reporter(quiet=True),
            shard_bytes=_SHARD,
        )
    finally:
        over.set()
    if sample:
        watcher.join()
    assert report.counts.failed == 0
    return {
        "seconds": time.monotonic() - begun,
        "done": done,
        "samples": samples,
        "shards": len(list((out / "shards").iterdir())),
    }


def _workers(parent: int) -> list[int]:
    """Return the processes that a process has started, without multiprocessing's own one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            of = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if of == parent and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def _resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:  # it has just ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(samples: list[tuple[float, float, float]], done: list[float]) -> dict[str, Any]:
    """Return the medians of the first and the last quarter of the results, and the peaks."""
    found: dict[str, Any] = {}
    for name, column in (("parent", 1), ("workers", 2)):
        quarters = []
        for quarter in range(4):
            start = done[len(done) * quarter // 4]
            end = done[len(done) * (quarter + 1) // 4 - 1]
            values = [sample[column] for sample in samples if start <= sample[0] <= end]
            quarters.append(statistics.median(values))
        found[name] = {
            "quarters_mib": [round(value, 1) for value in quarters],
            "last_by_first": round(quarters[-1] / quarters[0], 3),
            "peak_mib": round(max(sample[column] for sample in samples), 1),
        }
    return found


def rate(done: list[float]) -> float:
    """Return the results a second from the first to the last."""
    return round((len(done) - 1) / (done[-1] - done[0]), 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, help="of the long run")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=3, help="of each size")
    add_inputs_option(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "settings": {name: getattr(options, name) for name in ("files", "sizes", "rounds")},
        "load_before": load(),
    }

    def measured(folder: Path, out: Path, *, sample: bool = False) -> tuple[dict[str, Any], float]:
        with Crew(cores=2) as crew:  # a new process each time: memory does not shrink again
            taken = crew.run(partial(run, out=out, sample=sample), [folder])
        return taken.results[0], taken.cpu

    with workplace(options.inputs) as (inputs, outputs):
        folder = tiny(inputs, outputs / "many", options.files)
        found, _ = measured(folder, outputs / "store of many", sample=True)
        done = found["done"]
        result["memory"] = memory(found["samples"], done)
        result["videos_per_second_by_quarter"] = [
            rate(done[len(done) * quarter // 4 : len(done) * (quarter + 1) // 4])
            for quarter in range(4)
        ]
        result["shards"] = found["shards"]
        again, _ = measured(folder, outputs / "store of many")
        result["prepared_again"] = {str(options.files): round(again["seconds"], 3)}
        result["by_size"] = {}
        for size in options.sizes:
            folder = tiny(inputs, outputs / f"videos {size}", size)
            runs = [
                measured(folder, outputs / f"store {size} {number}")
                for number in range(options.rounds)
            ]
            result["by_size"][str(size)] = {
                "videos_per_second": statistics.median(rate(found["done"]) for found, _ in runs),
                "cpu_milliseconds_per_video": round(
                    1000 * statistics.median(cpu for _, cpu in runs) / size, 2
                ),
                "seconds": round(statistics.median(found["seconds"] for found, _ in runs), 2),
                "seconds_to_the_first": round(
                    statistics.median(found["done"][0] for found, _ in runs), 2
                ),
            }
            again, _ = measured(folder, outputs / f"store {size} 0")
            result["prepared_again"][str(size)] = round(again["seconds"], 3)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
