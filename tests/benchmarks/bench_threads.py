"""Why every worker decodes on one thread: PyAV's thread types compared.

The same files are decoded by two processes with one thread each, and by one process with two
threads of each type; the rows of vectors are compared with those of one thread. Then each mode
opens files and leaves the loop after a few frames, with torchvision imported, in a process of its
own that is ended when it hangs (PyAV issues 1849 and 1861).

Prints one JSON object: frames a second, processor time, ratios to two processes, frames whose
vectors differ, and how many early exits went well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import SIZES, add_inputs_option, rendered, workplace
from tests.benchmarks.measure import Crew, Taken, load, ratios, rounded, take_turns

MODES = {
    "one thread": ("SLICE", 1),
    "SLICE, two threads": ("SLICE", 2),
    "FRAME, two threads": ("FRAME", 2),
    "AUTO, two threads": ("AUTO", 2),
    "AUTO, a thread for each core": ("AUTO", 0),
}


def decode(path: Path, *, mode: str) -> int:
    """Decode a file with its vectors; return its frames."""
    import av

    kind, threads = MODES[mode]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = kind, threads
        stream.codec_context.options = {"flags2": "+export_mvs"}
        return sum(1 for _ in container.decode(stream))


def vectors(path: Path, *, mode: str) -> list[Any]:
    """Return the rows of each frame."""
    import av

    from tatscli.video.motion import exported, rows

    kind, threads = MODES[mode]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = kind, threads
        stream.codec_context.options = {"flags2": "+export_mvs"}
        return [rows(exported(frame)) for frame in container.decode(stream)]


def differing(path: Path, *, mode: str) -> dict[str, Any]:
    """Return in how many frames a mode's vectors are not those of one thread."""
    import numpy as np

    wanted, found = vectors(path, mode="one thread"), vectors(path, mode=mode)
    pairs = list(zip(wanted, found, strict=True))
    return {
        "frames": len(pairs),
        "frames_that_differ": sum(not np.array_equal(one, other) for one, other in pairs),
        "frames_without_all_rows": sum(len(other) < len(one) for one, other in pairs),
        "rows": sum(map(len, wanted)),
        "rows_missing": sum(max(0, len(one) - len(other)) for one, other in pairs),
    }


_EARLY_EXITS = """
import sys, torch, torchvision, av
kind, threads, exits = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for number in range(exits):
    container = av.open(sys.argv[4 + number % len(sys.argv[4:])])
    stream = container.streams.video[0]
    stream.thread_type, stream.thread_count = kind, threads
    for index, frame in enumerate(container.decode(stream)):
        if index == 3:
            break
    if number % 2:
        container.close()  # the others are left to the garbage collector
    del container, stream, frame
    print(number + 1, flush=True)
"""


def early_exits(paths: list[Path], mode: str, exits: int, timeout: float) -> dict[str, Any]:
    """Leave loops early in a process of its own."""
    kind, threads = MODES[mode]
    command = [sys.executable, "-c", _EARLY_EXITS, kind, str(threads), str(exits)]
    process = subprocess.Popen([*command, *map(str, paths)], stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=timeout)
        end = "exit code 0" if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        end = f"hung: ended after {timeout:g} s"
    return {"exits_that_went_well": int((said.split() or ["0"])[-1]), "of": exits, "end": end}


def compare(paths: list[Path], rounds: int) -> dict[str, Any]:
    """Measure decoding of some files."""
    with Crew(2, cores=2) as two, Crew(cores=2) as one:
        sides: dict[str, Callable[[], Taken]] = {
            "two processes, one thread": partial(two.run, partial(decode, mode="one thread"), paths)
        }
        for mode in MODES:
            sides[mode] = partial(one.run, partial(decode, mode=mode), paths)
        medians, results = take_turns(sides, rounds=rounds)
        frames = {name: sum(counts) for name, counts in results.items()}
        different = {
            mode: one.run(partial(differing, mode=mode), paths[:1]).results[0] for mode in MODES
        }
    return {
        "frames": frames,
        "seconds": rounded(medians),
        "frames_per_second": {
            name: round(frames[name] / taken["wall"], 1) for name, taken in medians.items()
        },
        "ratio": ratios(medians, "two processes, one thread", list(MODES)),
        "vectors": different,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=Path, nargs="+", help="files; rendered ones otherwise")
    parser.add_argument("--copies", type=int, default=4, help="of each file")
    parser.add_argument("--frames", type=int, default=100, help="of each rendered file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exits", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=30, help="seconds for all exits of a mode")
    add_inputs_option(parser)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "settings": {
            name: getattr(options, name) for name in ("copies", "frames", "rounds", "exits")
        },
        "load_before": load(),
        "decoding": {},
    }
    with workplace(options.inputs) as (inputs, _):
        made = options.clips or [
            rendered(inputs, "h264", size, frames=options.frames) for size in SIZES
        ]
        for path in made:
            result["decoding"][path.stem] = compare([path] * options.copies * 2, options.rounds)
        result["early_exits"] = {
            mode: early_exits(made, mode, options.exits, options.timeout) for mode in MODES
        }
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
