"""How fast clips come for a ViT-S pretraining: loader workers, and the share of a step that waits.

    python tests/benchmarks/bench_feed.py --seconds 60 --rounds 5

`loader` takes batches of `videomae/k400-small` (16 frames, 224 x 224)
from one worker and from two, in turns of a minute, and does nothing with them. `decoding` is what
the machine's second core is worth to the same work without a loader: processes that decode the
JPEGs of clips in memory. `step` trains on what the loader brings: how much of a step is waiting.
`host` is the processor time of a clip in the loader, resized there and cut only.

Prints one JSON object: clips a second by round, their medians, and the second worker's factor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine
from tests.benchmarks.bench_motion import prepare
from tests.benchmarks.clips import scene, workplace
from tests.benchmarks.measure import Crew, load
from tests.clips import render

RECIPE, STORED, LENGTH = "videomae/k400-small", (340, 256), 200


def training(store: Path, batch: int) -> tuple[Any, Any, Callable[..., Any]]:
    """Return recipe, clips, and a function from a number of workers to their batches."""
    from tatscli.data.dataset import PretrainClips
    from tatscli.data.loader import training_batches
    from tatscli.recipe.derive import derive_schedule
    from tatscli.recipe.load import load_recipe
    from tatscli.store.reader import Store

    words = [f"data.store={store}", "data.cache=none", f"optim.total_batch={batch}"]
    recipe = load_recipe(RECIPE, [*words, f"optim.batch_per_device={batch}"]).recipe
    opened = Store.open(store)
    rows = opened.part(None)
    clips = PretrainClips(
        opened, rows, recipe.data, patch=recipe.model.patch, seed=0, follows_motion=False
    )
    schedule = derive_schedule(recipe.optim, videos=len(rows), repeats=recipe.data.repeats, world=1)
    return recipe, clips, partial(training_batches, clips, schedule, seed=0)


def rate(batches: Any, seconds: float) -> float:
    """Return clips a second, after a batch of each worker that does not count."""
    with closing(batches):
        for _ in range(4):
            next(batches)
        count, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < seconds:
            count += len(next(batches).row_B)
    return count / taken


_FILES: list[Any] = []


def decode(seconds: float, *, store: Path) -> float:
    """Return clips a second that this process decodes from memory."""
    import torch

    from tatscli.data.vision import decode_jpegs
    from tatscli.store.reader import Store

    torch.set_num_threads(1)
    if not _FILES:
        opened = Store.open(store)
        _FILES.extend(opened.jpegs(row, range(0, 64, 4)) for row in opened.part(None))
        decode_jpegs(_FILES[0])
    count, begun = 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < seconds:
        decode_jpegs(_FILES[count % len(_FILES)])
        count += 1
    return count / taken


def waiting(
    recipe: Any, batches: Callable[..., Any], workers: int, batch: int, steps: int
) -> dict[str, float]:
    """Train on what the loader brings; return the seconds of a step and how much is waiting."""
    import torch

    from tatscli.engine.feed import Feed
    from tatscli.system.system import build_system
    from tests.benchmarks.steps import Steps, noise

    one = Steps(recipe, build_system(recipe), noise(recipe, batch))
    with Feed(batches(workers=workers), torch.device("cpu")) as feed:
        one._feed = feed
        one()
        one.read()
        for _ in range(steps):
            one()
        means = one.read()
    data, step = means["data_seconds"], means["step_seconds"]
    return {"data_seconds": data, "step_seconds": step, "waiting": data / (data + step)}


def in_the_loader(clips: Any, count: int) -> dict[str, float]:
    """Return milliseconds of processor time a clip, resized by the loader and only cut there."""
    from tatscli.data.batch import collate
    from tatscli.data.finishing import Finishing

    spent: dict[str, list[float]] = {"resized": [], "cut": []}
    for number in range(count):
        for name, times in spent.items():
            clips.finishing = Finishing(resize=name == "cut")
            begun = time.process_time()
            collate(clips[number, number % len(clips)])
            times.append(1000 * (time.process_time() - begun))
    clips.finishing = Finishing()
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="clips")
    parser.add_argument("--steps", type=int, default=5, help="0 leaves the step out")
    parser.add_argument("--videos", type=int, default=16)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "settings": {"recipe": RECIPE, **vars(options)},
        "machine": machine("cpu"),
        "load_before": load(),
    }
    with workplace(None) as (_, outputs):
        store = outputs / "store"
        for number in range(options.videos):
            path = outputs / "videos" / f"{number:05d}.mp4"
            render(path, scene(STORED, frames=LENGTH, seed=number))
        prepare(outputs / "videos", out=store, frames="jpeg", motion="native")
        recipe, clips, batches = training(store, options.batch)
        result["host"] = in_the_loader(clips, 32)
        found: dict[str, list[float]] = {}
        crews = {count: Crew(count, cores=2) for count in (1, 2)}
        for _ in range(options.rounds):
            for count in (1, 2):
                taken = rate(batches(workers=count), options.seconds)
                found.setdefault(f"loader {count}", []).append(taken)
                work = partial(decode, store=store)
                sides = crews[count].run(work, [options.seconds / 4] * count)
                found.setdefault(f"decoding {count}", []).append(sum(sides.results))
        for crew in crews.values():
            crew.close()
        medians = {name: statistics.median(rates) for name, rates in found.items()}
        result["clips_per_second"] = {
            name: {"median": round(medians[name], 2), "rounds": [round(one, 2) for one in rates]}
            for name, rates in found.items()
        }
        result["second_worker"] = {
            name: round(medians[f"{name} 2"] / medians[f"{name} 1"], 3)
            for name in ("loader", "decoding")
        }
        result["by_decoding"] = round(medians["loader 1"] / medians["decoding 1"], 3)
        if options.steps:
            result["step"] = {
                f"{workers} workers": waiting(
                    recipe, batches, workers, options.batch, options.steps
                )
                for workers in (1, 2)
            }
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
