"""A random clip of 16 frames, stride 4, as uint8: a store's JPEGs against decord on the sources.

decord's `VideoReader(path, num_threads=1, ctx=cpu(0)).get_batch(frames)` is how VideoMAE and its
descendants read; `decord_resized` lets it scale to the stored size (`width`, `height`) as they do
for fine-tuning, `decord` keeps the size of the source. Both sides load the very same clips, first
in one process and then in PyTorch's DataLoader with 1 and 2 workers. Floor: the JPEGs lie in
memory and are only decoded.

Prints one JSON object: clips a second and ratios to the store's.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_prepare import ours as prepare

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import SIZES, add_inputs_option, data_set, workplace
from tests.benchmarks.measure import Crew, Taken, installed, load, ratios, take_turns

PEER = "decord"
FRAMES, STRIDE = 16, 4
_REPEAT = 20  # so often the store reads all clips while the peer does once

Clip = tuple[int, list[int]]  # number of the video, frames


def draw(videos: int, length: int, clips: int) -> list[Clip]:
    """Draw clips as VideoMAE does: a random video, a random start."""
    rng = random.Random(0)
    starts = length - FRAMES * STRIDE + 1
    return [
        (
            rng.randrange(videos),
            [start + STRIDE * index for index in range(FRAMES)],
        )
        for start in (rng.randrange(starts) for _ in range(clips))
    ]


class FromStore:
    """Clips of a store, read as training does.

    Args:
        store: The store's folder.
        clips: What to read.
    """

    def __init__(self, store: Path, clips: list[Clip]) -> None:
        from tatscli.data.dataset import Clips
        from tatscli.recipe.schema import Data
        from tatscli.store.reader import Store

        opened = Store.open(store)
        self._clips = Clips(opened, range(len(opened.rows)), Data(store=str(store)))
        self._wanted = clips

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index: int) -> Any:
        return self._clips.pictures(*self._wanted[index])


class FromDecord:
    """The same from the sources.

    Args:
        folder: Of the sources.
        clips: What to read.
        size: Width and height to scale to; None keeps those of the source.
    """

    def __init__(self, folder: Path, clips: list[Clip], size: tuple[int, int] | None) -> None:
        self._paths = sorted(map(str, folder.iterdir()))
        self._wanted = clips
        self._size = {} if size is None else {"width": size[0], "height": size[1]}

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, index: int) -> Any:
        import decord
        import torch

        video, frames = self._wanted[index]
        reader = decord.VideoReader(
            self._paths[video], num_threads=1, ctx=decord.cpu(0), **self._size
        )
        return torch.from_numpy(reader.get_batch(frames).asnumpy())


_KEPT: dict[str, Any] = {}  # what this process has made in an earlier round


def read(name: str, *, make: Callable[[], Any], workers: int) -> tuple[int, list[int]]:
    """Read all clips of a data set; return how many, and the shape of the last.

    Args:
        name: Of this combination: data set and workers are kept from round to round.
        make: Makes the data set.
        workers: Of the DataLoader; 0 reads in this process.
    """
    from torch.utils.data import DataLoader

    if name not in _KEPT:
        dataset = make()
        _KEPT[name] = dataset
        if workers:
            _KEPT[name] = DataLoader(
                dataset,
                batch_size=None,
                num_workers=workers,
                persistent_workers=True,
                multiprocessing_context="spawn",
            )
    source, count, shape = _KEPT[name], 0, []
    for item in source if workers else (source[index] for index in range(len(source))):
        count, shape = count + 1, list(item.shape)
    return count, shape


def decode(store: Path, *, clips: list[Clip]) -> tuple[int, list[int]]:
    """Decode JPEGs that lie in memory: the floor."""
    from tatscli.data.vision import decode_jpegs
    from tatscli.store.reader import Store

    if "jpegs" not in _KEPT:
        opened = Store.open(store)
        _KEPT["jpegs"] = [opened.jpegs(*clip) for clip in clips]
    shapes = [list(decode_jpegs(files).shape) for files in _KEPT["jpegs"]]
    return len(shapes), shapes[-1]


def compare(
    folder: Path, store: Path, clips: list[Clip], rounds: int, peers: set[str]
) -> dict[str, Any]:
    """Measure one data set."""
    from tatscli.store.reader import Store

    row = Store.open(store).rows[0]
    resized = (row.width, row.height) != (row.source_width, row.source_height)
    many = clips * _REPEAT
    makers: dict[str, Callable[[], Any]] = {"store": partial(FromStore, store, many)}
    if PEER in peers:
        makers["decord"] = partial(FromDecord, folder, clips, None)
        if resized:
            makers["decord_resized"] = partial(FromDecord, folder, clips, (row.width, row.height))
    found: dict[str, Any] = {"stored": [row.width, row.height], "in_one_process": {}}
    for workers in (0, 1, 2):
        crews = {name: Crew(cores=2 if workers else 1) for name in (*makers, "floor")}
        sides: dict[str, Callable[[], Taken]] = {
            name: partial(
                crews[name].run, partial(read, make=make, workers=workers), [f"{name} {workers}"]
            )
            for name, make in makers.items()
        }
        if not workers:
            sides["floor"] = partial(crews["floor"].run, partial(decode, clips=many), [store])
        medians, results = take_turns(sides, rounds=rounds)
        per_clip = {
            name: {
                # Workers that live on are not in the processor time of those that waited.
                clock: seconds / results[name][0][0]
                for clock, seconds in one.items()
                if clock != "cpu" or not workers
            }
            for name, one in medians.items()
        }
        found["in_one_process" if not workers else f"with_{workers}_workers"] = {
            "milliseconds_per_clip": {
                name: {clock: round(1000 * one, 2) for clock, one in clocks.items()}
                for name, clocks in per_clip.items()
            },
            "clips_per_second": {name: round(1 / one["wall"], 1) for name, one in per_clip.items()},
            "ratio": ratios(per_clip, "store", [name for name in sides if name != "store"]),
        }
        found["shapes"] = {name: shape for name, ((_, shape),) in results.items()}
        for crew in crews.values():
            crew.close()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--frames", type=int, default=300, help="of each file")
    parser.add_argument("--clips", type=int, default=8, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    add_inputs_option(parser)
    options = parser.parse_args()
    peers, missing = installed(PEER)
    result: dict[str, Any] = {
        "settings": {
            name: getattr(options, name) for name in ("files", "frames", "clips", "rounds")
        },
        "load_before": load(),
        "missing": missing,
    }
    with workplace(options.inputs) as (inputs, outputs):
        for size in SIZES:
            folder, store = outputs / f"videos {size}", outputs / f"store {size}"
            data_set(inputs, folder, size, files=options.files, frames=options.frames, kinds=2)
            with Crew(cores=2) as crew:
                crew.run(partial(prepare, out=store, motion="native"), [folder])
            clips = draw(options.files, options.frames, options.clips)
            result[size] = compare(folder, store, clips, options.rounds, peers)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
