"""Motion vectors of whole files: `read_vectors` against motion-vector-extractor.

    python tests/benchmarks/bench_vectors.py --clips A.mp4 B.mp4

The peer is measured twice: as its `VideoCap.read` comes, which makes a BGR picture as well, and
with `set_decode_frames(False)`, its own fast mode, with vectors alone. On two cores we spread files
over two processes (`read_vectors`, and `tats prepare --frames none`, which also makes the motion
fields and writes a store), and the peer runs as it comes, with threads of its own, and in two
processes. Floors are PyAV's decoding without vectors, as it comes and without loop filter and
inverse transform.

Prints one JSON object: medians in seconds, ratios of peer to ours, and in how many frames the rows
differ from those of a plain decode on one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.clips import CODECS, SIZES, add_inputs_option, rendered, workplace
from tests.benchmarks.measure import Crew, Taken, installed, load, ratios, rounded, take_turns

PEER = "mvextractor"
FAST = {"skip_loop_filter": "all", "skip_idct": "all"}


def ours(path: Path) -> int:
    """Read the rows of a file as `tats motion --raw` does; return how many there are."""
    from tatscli.video.motion import read_vectors

    return sum(len(frame.rows) for frame in read_vectors(path))


def peer(path: Path, *, pictures: bool) -> int:
    """Read them as the peer's README does."""
    return sum(len(rows) for rows in peer_rows(path, pictures=pictures))


def peer_rows(path: Path, *, pictures: bool) -> Any:
    """Yield the peer's rows frame by frame."""
    from mvextractor.videocap import VideoCap

    capture = VideoCap()
    if not capture.open(str(path)):
        raise RuntimeError(f"{PEER} does not open {path}")
    if not pictures:
        capture.set_decode_frames(False)
    while True:
        # As in its README. To let go of the picture before the next one comes would cost it half as
        # much again: new memory for every picture.
        ok, _picture, rows, _kind = capture.read()
        if not ok:
            break
        yield rows
    capture.release()


def bare(path: Path, *, options: dict[str, str]) -> int:
    """Decode on one thread and look at nothing."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        stream.codec_context.options = options
        return sum(1 for _ in container.decode(stream))


def store(folder: Path, *, out: Path) -> int:
    """Do what `tats prepare FOLDER --frames none --motion native --workers 2` does."""
    from tatscli.console import Reporter
    from tatscli.store.pool import run_in_order
    from tatscli.store.prepare import prepare
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources

    report = prepare(
        find_sources(folder, dataset="folders"),
        out,
        Settings(frames="none", motion="native"),
        run=partial(run_in_order, workers=2, timeout=60),
        reporter=Reporter(quiet=True),
        overwrite=True,
    )
    assert report.counts.failed == 0
    return report.counts.frames


def plain_rows(path: Path) -> Any:
    """Yield the rows of a plain decode on one thread, in FFmpeg's own words."""
    import av
    import numpy as np

    from tatscli.video.motion import COLUMNS

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "SLICE", 1
        stream.codec_context.options = {"flags2": "+export_mvs"}
        for frame in container.decode(stream):
            found = frame.side_data.get("MOTION_VECTORS")
            table = np.zeros((0, len(COLUMNS)), np.int32)
            if found is not None:
                array = found.to_ndarray()
                table = np.stack([array[name].astype(np.int32) for name in COLUMNS], 1)
            yield table


def equality(path: Path) -> dict[str, int]:
    """Return how many frames differ between ours and a plain decode on one thread."""
    from tatscli.video.motion import read_vectors

    return _differing(plain_rows(path), (frame.rows for frame in read_vectors(path)))


def peer_equality(path: Path, *, pictures: bool) -> dict[str, int]:
    """Return how many frames differ between the peer's and a plain decode on one thread."""
    return _differing(plain_rows(path), peer_rows(path, pictures=pictures))


def _differing(wanted: Any, found: Any) -> dict[str, int]:
    import numpy as np

    wanted, found = list(wanted), list(found)
    differ = abs(len(wanted) - len(found))
    differ += sum(
        not np.array_equal(one, np.reshape(other, (-1, one.shape[1])))
        for one, other in zip(wanted, found, strict=False)
    )
    rows, lost = (sum(map(len, side)) for side in (wanted, found))
    return {
        "frames": len(wanted),
        "rows": rows,
        "frames_differ": differ,
        "rows_missing": rows - lost,
    }


def one_core(path: Path, rounds: int, peers: set[str]) -> dict[str, Any]:
    """Measure one file on one core."""
    with Crew(cores=1) as our, Crew(cores=1) as their, Crew(cores=1) as floor:
        sides: dict[str, Callable[[], Taken]] = {
            "ours": partial(our.run, ours, [path]),
            "floor": partial(floor.run, partial(bare, options={}), [path]),
            "floor_skipping": partial(floor.run, partial(bare, options=FAST), [path]),
        }
        if PEER in peers:
            sides["peer"] = partial(their.run, partial(peer, pictures=True), [path])
            sides["peer_fast"] = partial(their.run, partial(peer, pictures=False), [path])
        medians, _ = take_turns(sides, rounds=rounds)
        same = {"ours": our.run(equality, [path]).results[0]}
        if PEER in peers:
            for name, pictures in (("peer", True), ("peer_fast", False)):
                check = partial(peer_equality, pictures=pictures)
                same[name] = their.run(check, [path]).results[0]
    return {
        "seconds": rounded(medians),
        "ratio": ratios(medians, "ours", ("peer", "peer_fast", "floor", "floor_skipping")),
        "against_plain_decode": same,
    }


def two_cores(folder: Path, out: Path, rounds: int, peers: set[str]) -> dict[str, Any]:
    """Measure a folder of files on two cores."""
    paths = sorted(folder.iterdir())
    with (
        Crew(2, cores=2) as our,
        Crew(cores=2) as command,
        Crew(cores=2) as their,
        Crew(2, cores=2) as their_two,
        Crew(2, cores=2) as floor,
    ):
        sides: dict[str, Callable[[], Taken]] = {
            "ours": partial(our.run, ours, paths),
            "ours_store": partial(command.run, partial(store, out=out), [folder]),
            "floor": partial(floor.run, partial(bare, options={}), paths),
            "floor_skipping": partial(floor.run, partial(bare, options=FAST), paths),
        }
        if PEER in peers:
            for name, pictures in (("peer", True), ("peer_fast", False)):
                work = partial(peer, pictures=pictures)
                sides[name] = partial(their.run, work, paths)
                sides[f"{name}_two_processes"] = partial(their_two.run, work, paths)
        medians, _ = take_turns(sides, rounds=rounds)
    others = [name for name in medians if not name.startswith("ours")]
    return {
        "files": len(paths),
        "seconds": rounded(medians),
        "ratio": ratios(medians, "ours", others),
        "ratio_store": ratios(medians, "ours_store", others),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=Path, nargs="+", help="files; rendered ones otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=100, help="of each rendered file")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of work for each of two cores, as ours takes"
    )
    add_inputs_option(parser)
    options = parser.parse_args()
    peers, missing = installed(PEER)
    result: dict[str, Any] = {
        "settings": {"rounds": options.rounds, "frames": options.frames},
        "load_before": load(),
        "missing": missing,
        "one_core": {},
        "two_cores": {},
    }
    with workplace(options.inputs) as (inputs, outputs):
        made = {
            rendered(inputs, codec, size, frames=options.frames): codec
            for codec in (() if options.clips else CODECS)
            for size in SIZES
        }
        for number, path in enumerate(options.clips or made):
            codec, path = made.get(path), path.resolve()
            alone = result["one_core"][path.stem] = one_core(path, options.rounds, peers)
            if codec not in (None, "h264"):
                continue
            folder = outputs / f"files{number}"
            folder.mkdir()
            for copy in range(max(4, round(2 * options.seconds / alone["seconds"]["ours"]["cpu"]))):
                (folder / f"{copy:05d}{path.suffix}").symlink_to(path)
            result["two_cores"][path.stem] = two_cores(
                folder, outputs / f"store{number}", options.rounds, peers
            )
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
