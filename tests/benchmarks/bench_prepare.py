"""Frames and vectors into a store: `tats prepare` against ffmpeg and motion-vector-extractor.

What people do today: for each file `ffmpeg -i F -vf scale=... -q:v 3 frames/%05d.jpg`, then
motion-vector-extractor over the same file, its vectors into one .npy. Measured with the vectors
alone (`set_decode_frames(False)`), as its `VideoCap.read` comes, and as its own command
(`extract_mvs --dump`), one file after the other with the tools' own threads, and two such pipelines
side by side. Ours uses two workers; its time holds their start and the writing of the shard.

Floor: decoding, scaling and JPEG encoding of the same frames by PyAV, two processes, nothing kept.

Prints one JSON object: medians in seconds, ratios to ours, and where our own time goes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import SIZES, add_inputs_option, data_set, megabits, workplace
from tests.benchmarks.measure import Crew, Taken, installed, load, ratios, rounded, take_turns

PEER = "mvextractor"
SHORT_SIDE = 256
_SHARE_FOR_COMMAND = 4


def ours(folder: Path, *, out: Path, motion: str) -> int:
    """Do what `tats prepare FOLDER --motion MOTION --workers 2` does."""
    from tatscli.console import Reporter
    from tatscli.store.pool import run_in_order
    from tatscli.store.prepare import prepare
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources

    report = prepare(
        find_sources(folder, dataset="folders"),
        out,
        Settings(motion=motion),
        run=partial(run_in_order, workers=2, timeout=60),
        reporter=Reporter(quiet=True),
        overwrite=True,
    )
    assert report.counts.failed == 0
    return report.counts.frames


def pipeline(path: Path, *, out: Path, how: str | None) -> int:
    """Do what people do today with one file; return the frames written.

    Args:
        path: The file.
        out: Where a folder for it is made.
        how: `fast`, `default` or `command`; None for the JPEGs alone.
    """
    folder = out / path.stem
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "frames").mkdir(parents=True)
    scale = f"scale='if(gt(iw,ih),-1,{SHORT_SIDE})':'if(gt(iw,ih),{SHORT_SIDE},-1)'"
    arguments = ["-vf", scale, "-q:v", "3", str(folder / "frames" / "%05d.jpg")]
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *arguments], check=True)
    if how == "command":
        command = [sys.executable, "-m", "mvextractor", "--dump", str(folder / "dump"), str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    elif how is not None:
        _vectors_of_peer(path, folder / "vectors.npy", pictures=how == "default")
    return sum(1 for _ in (folder / "frames").iterdir())


def _vectors_of_peer(path: Path, out: Path, *, pictures: bool) -> None:
    import numpy as np
    from mvextractor.videocap import VideoCap

    capture = VideoCap()
    assert capture.open(str(path))
    if not pictures:
        capture.set_decode_frames(False)
    tables: list[Any] = []
    while True:
        ok, _picture, rows, _kind = capture.read()
        if not ok:
            break
        number = np.full((len(rows), 1), len(tables), np.int32)
        tables.append(np.hstack([number, np.reshape(rows, (-1, 10))]))
    capture.release()
    np.save(out, np.concatenate(tables))


def floor(path: Path) -> int:
    """Decode, scale and encode with PyAV alone; the settings are those of the store."""
    import av

    from tatscli.video.encode import JpegEncoder
    from tatscli.video.picture import Scaler, stored_size

    encode, scale, size = JpegEncoder(3), None, 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        for frame in container.decode(stream):
            if scale is None:
                scale = Scaler(*stored_size(frame.width, frame.height, SHORT_SIDE))
            size += len(encode(scale(frame)))
    return size


def split(folder: Path, *, out: Path, motion: str) -> dict[str, float]:
    """Return processor milliseconds a frame of the parts of our own work, in one process."""
    from tatscli.console import Reporter
    from tatscli.store import convert, prepare
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources
    from tatscli.video import frames
    from tatscli.video.encode import JpegEncoder
    from tatscli.video.picture import Scaler
    from tatscli.video.reader import VideoReader
    from tatscli.video.reencode import MotionEstimator

    clock = time.thread_time
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            begun = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] = spent.get(name, 0.0) + clock() - begun

        return run

    read = VideoReader.__iter__

    def timed_reader(self: VideoReader) -> Iterator[Any]:
        items = read(self)
        step = timed("decode", partial(next, items, None))
        while (item := step()) is not None:
            yield item

    VideoReader.__iter__ = timed_reader  # type: ignore[method-assign]
    for owner, name, part in (
        (Scaler, "__call__", "scale"),
        (JpegEncoder, "__call__", "jpeg"),
        (MotionEstimator, "__call__", "reencode"),
        (frames, "exported", "take vectors"),
        (frames, "rasterise", "rasterise"),
        (convert, "checksum", "checksum"),
        (prepare, "write_shard", "shard"),
    ):
        setattr(owner, name, timed(part, getattr(owner, name)))

    def here(work: Callable[..., Any], jobs: Any) -> Iterator[Any]:
        for job in jobs:
            yield job, work(job)

    begun = clock()
    report = prepare.prepare(
        find_sources(folder, dataset="folders"),
        out,
        Settings(motion=motion),  # type: ignore[arg-type]
        run=here,  # type: ignore[arg-type]
        reporter=Reporter(quiet=True),
        overwrite=True,
    )
    spent["all else"] = clock() - begun - sum(spent.values())
    spent["together"] = clock() - begun
    return {name: round(1000 * one / report.counts.frames, 3) for name, one in spent.items()}


def compare(folder: Path, outputs: Path, rounds: int, peers: set[str]) -> dict[str, Any]:
    """Measure one data set."""
    paths = sorted(folder.iterdir())
    with Crew(cores=2) as our, Crew(cores=2) as one, Crew(2, cores=2) as two:
        sides: dict[str, Callable[[], Taken]] = {
            f"ours_{motion}": partial(
                our.run, partial(ours, out=outputs / motion, motion=motion), [folder]
            )
            for motion in ("native", "auto", "none")
        }
        sides["floor"] = partial(two.run, floor, paths)
        work = partial(pipeline, out=outputs / "peer")
        if "ffmpeg" in peers:
            sides["ffmpeg_alone"] = partial(one.run, partial(work, how=None), paths)
        if {"ffmpeg", PEER} <= peers:
            for how in ("fast", "default"):
                sides[f"ffmpeg+peer_{how}"] = partial(one.run, partial(work, how=how), paths)
                sides[f"ffmpeg+peer_{how}_two_pipelines"] = partial(
                    two.run, partial(work, how=how), paths
                )
        medians, results = take_turns(sides, rounds=rounds, warm_up=False)
        frames = results["ours_native"][0]
        for name, result in results.items():
            if name != "floor" and sum(result) != frames:
                raise RuntimeError(f"{name} wrote {sum(result)} frames instead of {frames}")
        if {
            "ffmpeg",
            PEER,
        } <= peers:  # once and a few files: it takes long
            few = paths[: -(-len(paths) // _SHARE_FOR_COMMAND)]
            taken = one.run(partial(work, how="command"), few)
            scale = frames / sum(taken.results)
            medians["ffmpeg+peer_command"] = {
                "wall": taken.wall * scale,
                "cpu": taken.cpu * scale,
                "best": taken.wall * scale,
            }
    parts = {}
    for motion in ("native", "auto"):
        with Crew(cores=1) as alone:
            task = partial(split, out=outputs / "split", motion=motion)
            parts[motion] = alone.run(task, [folder]).results[0]
    others = [name for name in medians if not name.startswith("ours")]
    return {
        "files": len(paths),
        "frames": frames,
        "mbit_per_second": megabits(paths[0], frames / len(paths) / 25),
        "seconds": rounded(medians),
        "frames_per_second": {
            name: round(frames / one["wall"], 1) for name, one in medians.items()
        },
        "ratio": {
            motion: ratios(medians, f"ours_{motion}", others) for motion in ("native", "auto")
        },
        "ours_by_floor": {
            motion: ratios(medians, "floor", [f"ours_{motion}"])[f"ours_{motion}"]
            for motion in ("native", "auto", "none")
        },
        "own_milliseconds_per_frame": parts,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, nargs=2, default=[12, 32], help="of each size")
    parser.add_argument("--frames", type=int, default=100, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    add_inputs_option(parser)
    options = parser.parse_args()
    peers, missing = installed(PEER)
    if shutil.which("ffmpeg"):
        peers.add("ffmpeg")
    else:
        missing["ffmpeg"] = "skipped: there is no program `ffmpeg`"
    result: dict[str, Any] = {
        "settings": {"files": options.files, "frames": options.frames, "rounds": options.rounds},
        "load_before": load(),
        "missing": missing,
    }
    with workplace(options.inputs) as (inputs, outputs):
        for size, files in zip(SIZES, options.files, strict=True):
            folder = outputs / f"videos {size}"
            data_set(inputs, folder, size, files=files, frames=options.frames)
            result[size] = compare(folder, outputs, options.rounds, peers)
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
