"""What an hour of video costs to prepare: core seconds, and bytes in the store.

    python tests/benchmarks/bench_hour.py --clips FILE...

The clips are encoded in the forms the public data sets come in, prepared by one worker, and what
that takes is scaled to an hour. Prints one JSON object. Without clips a rendered scene serves.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tatscli.console import Reporter
from tatscli.store import prepare as pipeline
from tatscli.store.pool import run_in_order
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tatscli.video.reader import VideoReader
from tests.benchmarks.clips import rendered
from tests.clips import render

FORMS: dict[str, tuple[str, str, dict[str, str], tuple[int, int], int]] = {
    "SSv2: VP9 427x240, 12 fps": ("libvpx-vp9", ".webm", {"crf": "32"}, (427, 240), 12),
    "K400, scaled: H.264 340x256, 25 fps": ("libx264", ".mp4", {}, (340, 256), 25),
    "K400, as published: H.264 1280x720, 25 fps": ("libx264", ".mp4", {}, (1280, 720), 25),
    "HEVC 1280x720, 25 fps": (
        "libx265",
        ".mp4",
        {"x265-params": "log-level=none"},
        (1280, 720),
        25,
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "auto": {},
    "native": {"motion": "native"},
    "no motion": {"motion": "none"},
    "motion only, native": {"motion": "native", "frames": "none"},
}


def encoded(clip: Path, form: str, folder: Path) -> Path:
    """Encode up to 300 frames of a clip in the form of a data set."""
    codec, suffix, options, (width, height), fps = FORMS[form]

    def pictures() -> Any:
        for number, item in enumerate(VideoReader(clip)):
            if number == 300:
                return
            yield item.frame.reformat(width=width, height=height, format="rgb24").to_ndarray()

    path = folder / f"{clip.stem}{suffix}"
    return render(path, pictures(), codec=codec, options=options, fps=Fraction(fps))


def measure(folder: Path, mode: str, out: Path) -> dict[str, float]:
    """Prepare a folder with one worker."""
    before = cpu()
    report = pipeline.prepare(
        find_sources(folder),
        out,
        Settings(**MODES[mode]),
        run=partial(run_in_order, workers=1),
        reporter=Reporter(quiet=True),
    )
    hours = sum(row.duration for row in report.rows) / 3600
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"core_s": (cpu() - before - START) / hours, "GB": size / 1e9 / hours}


def cpu() -> float:
    """Return the processor seconds of the children of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def nothing(jobs: Sequence[None]) -> Sequence[None]:
    """For measuring what starting a worker costs."""
    return jobs


def main() -> None:
    """Measure every form in every mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=Path, nargs="+", help="real clips")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tats-bench-") as temporary:
        work = Path(temporary)
        clips = options.clips or [rendered(work, "h264", "720p", frames=100)]
        for number, form in enumerate(FORMS):
            folder = work / f"form{number}"
            for clip in clips:
                encoded(clip, form, folder)
            results[form] = {}
            for mode in MODES:
                rounds = [
                    measure(folder, mode, work / f"store-{number}-{mode}-{n}")
                    for n in range(options.rounds)
                ]
                results[form][mode] = {
                    key: round(statistics.median(one[key] for one in rounds), 2)
                    for key in ("core_s", "GB")
                }
    print(json.dumps({"per_hour_of_video": results, "rounds": options.rounds}))


if __name__ == "__main__":
    begun = cpu()
    list(run_in_order(nothing, [[None]], workers=1))
    START = cpu() - begun  # of a worker process: no part of an hour
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
