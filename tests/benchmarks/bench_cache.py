"""What `data.cache` saves: a clip's frames from memory against decoding them in every pass.

    python tests/benchmarks/bench_cache.py

`none` reads and decodes a clip, `ram` takes it from memory where everything has been decoded,
`floor` copies the same bytes from a clip that lies decoded in memory of this process. `item_none`
and `item_ram` are whole items of pretraining: frames, view and motion. The sides take turns clip by
clip in one process, on one thread. `first_none` and `first_ram` read clips of which no frame has
been decoded yet, by a new cache in every round.

Small frames are 48 x 48, clips of 8 from videos of 24 frames; large ones 340 x 256, clips of 16 at
stride 4, cut to 224 x 224.

Prints one JSON object: medians over rounds, milliseconds a clip by the clock and in processor time.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine
from tests.benchmarks.bench_motion import Clock, median_of, prepare, rounded
from tests.benchmarks.clips import scene, workplace
from tests.benchmarks.measure import load
from tests.clips import render


@dataclass(frozen=True)
class Case:
    """Videos and the clips that are drawn from them.

    Attributes:
        stored: Width and height of the stored pictures.
        videos: How many, of different content.
        length: Frames of each.
        frames: Frames of a clip.
        stride: Stored frames from one of the clip to the next.
        size: Height and width of the view.
        patch: Side of a token.
    """

    stored: tuple[int, int]
    videos: int
    length: int
    frames: int
    stride: int
    size: int
    patch: int


CASES = {
    "48x48, 8 of 24": Case((48, 48), 64, 24, frames=8, stride=2, size=48, patch=12),
    "340x256, 16 of 200": Case((340, 256), 4, 200, frames=16, stride=4, size=224, patch=16),
}


class Reading:
    """Clips of a store with and without a cache, and the clocks of reading them.

    Args:
        case: What is read.
        store: The store's folder.
        count: Clips in a round.
    """

    def __init__(self, case: Case, store: Path, count: int) -> None:
        from tatscli.data.dataset import Clips, PretrainClips
        from tatscli.recipe.schema import Data, Sampling
        from tatscli.store.reader import Store

        opened, rng = Store.open(store), random.Random(0)
        rows = opened.part(None)
        scales = [1.0] if case.size == min(case.stored) else [1, 0.875, 0.75, 0.66]
        data = {
            kind: Data(
                store=str(store),
                frames=case.frames,
                size=case.size,
                sampling=Sampling(stride=case.stride),
                crop_scales=scales,
                cache=kind,  # type: ignore[arg-type]
            )
            for kind in ("none", "ram")
        }
        self.new: Callable[[str], Clips] = lambda kind: Clips(opened, rows, data[kind])
        self.items = {
            kind: PretrainClips(opened, rows, one, patch=case.patch, seed=0)
            for kind, one in data.items()
        }
        span = (case.frames - 1) * case.stride + 1
        self.wanted = [
            (rng.choice(rows), [start + case.stride * n for n in range(case.frames)])
            for start in (rng.randrange(case.length - span + 1) for _ in range(count))
        ]
        self.apart = [
            (row, [start + case.stride * n for n in range(case.frames)])
            for row in rows
            for start in range(0, case.length - span + 1, span)
        ]
        everything = list(range(case.length))
        decoded = {row: self.items["ram"].pictures(row, everything) for row in rows}
        self.copies = [decoded[row][frames] for row, frames in self.wanted]

    def round(self, number: int) -> dict[str, Clock]:
        """Read every clip on every side; return milliseconds a clip."""
        spent: dict[str, Clock] = {}

        def timed(side: str, clips: int, function: Callable[..., Any], *given: Any) -> None:
            clocks = spent.setdefault(side, {"wall": 0.0, "cpu": 0.0})
            wall, cpu = time.perf_counter(), time.process_time()
            function(*given)
            clocks["wall"] += 1000 * (time.perf_counter() - wall) / clips
            clocks["cpu"] += 1000 * (time.process_time() - cpu) / clips

        none, ram = self.items["none"], self.items["ram"]
        for index, clip in enumerate(self.wanted):
            timed("none", len(self.wanted), none.pictures, *clip)
            timed("ram", len(self.wanted), ram.pictures, *clip)
            timed("floor", len(self.wanted), self.copies[index].clone)
            key = number, index % len(none)
            timed("item_none", len(self.wanted), none.__getitem__, key)
            timed("item_ram", len(self.wanted), ram.__getitem__, key)
        bare, fresh = self.new("none"), self.new("ram")
        for clip in self.apart:
            timed("first_none", len(self.apart), bare.pictures, *clip)
            timed("first_ram", len(self.apart), fresh.pictures, *clip)
        return spent


def measure(case: Case, folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Measure one case in a folder of its own."""
    for number in range(case.videos):
        pictures = scene(case.stored, frames=case.length, seed=number)
        render(folder / "videos" / f"{number:05d}.mp4", pictures)
    prepare(folder / "videos", out=folder / "store", frames="jpeg", motion="native")
    reading = Reading(case, folder / "store", count)
    taken = [reading.round(number) for number in range(rounds + 1)][1:]
    sides = {side: median_of([one[side] for one in taken]) for side in taken[0]}
    pairs = [("none", "ram"), ("ram", "floor"), ("item_none", "item_ram")]
    return {
        "cache": str(reading.items["ram"].cache_plan),
        "clips": {"drawn": len(reading.wanted), "apart": len(reading.apart)},
        "milliseconds_per_clip": sides,
        "ratio": {
            f"{a} / {b}": {clock: sides[a][clock] / sides[b][clock] for clock in sides[a]}
            for a, b in [*pairs, ("first_ram", "first_none")]
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clips", type=int, default=64, help="in each round")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "settings": {"rounds": options.rounds, "clips": options.clips},
        "machine": machine("cpu"),
        "load_before": load(),
    }
    with workplace(None) as (_, outputs):
        for number, (name, case) in enumerate(CASES.items()):
            result[name] = measure(case, outputs / str(number), options.rounds, options.clips)
    result["load_after"] = load()
    print(json.dumps(rounded(result), indent=2))


if __name__ == "__main__":
    main()
