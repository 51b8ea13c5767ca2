"""What motion costs a clip: against reading its frames, and against optical flow.

    python tests/benchmarks/bench_motion.py
    python tests/benchmarks/bench_motion.py --device cuda

Clips of 16 frames from a store of 340 x 256 pictures. `frames` reads, decodes and cuts the pictures
of a clip to 224 x 224, `motion` reads and makes its `MotionField` on the same view; the sides take
turns clip by clip in one process. `motion` is `track`, which reads the store, fills key frames and
chains over skipped frames, and `view`, which brings that onto the tokens; `field`, not added to
it, is what the store alone takes for these frames.

Optical flow is RAFT-small of torchvision with 6 iterations, as MGMAE runs it, on the 15 pairs of a
clip; its weights are random, which takes the same time. Ours in its place is `motion` and the share
of a clip in the plan of `mgm` for a batch of 32. Ours were found before, once, by `tats prepare`:
`prepare` is what a stored frame takes with and without motion, with and without pictures. Flow can
be found once as well: `pair_by_frame` is a pair of it against what motion adds to a stored frame.
`by_ours_with_prepare` lets ours pay that for every clip anew, for all frames that the clip spans.

Prints one JSON object: medians over rounds, milliseconds by the clock and in processor time.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_masks import machine, mask_sides, milliseconds
from tests.benchmarks.clips import add_inputs_option, data_set, workplace
from tests.benchmarks.measure import Crew, Taken, load, take_turns

FRAMES, SIZE, PATCH, STORED = 16, 224, 16, "340x256"
BATCH = 32
Clock = dict[str, float]


def prepare(folder: Path, *, out: Path, frames: str, motion: str) -> int:
    """Do the work of `tats prepare` in this process; return how many frames it was."""
    from tatscli.console import Reporter
    from tatscli.store import prepare as command
    from tatscli.store.schema import Settings
    from tatscli.store.sources import find_sources

    def here(work: Callable[..., Any], jobs: Any) -> Iterator[Any]:
        for job in jobs:
            yield job, work(job)

    report = command.prepare(
        find_sources(folder, dataset="folders"),
        out,
        Settings(frames=frames, motion=motion),  # type: ignore[arg-type]
        run=here,  # type: ignore[arg-type]
        reporter=Reporter(quiet=True),
        overwrite=True,
    )
    assert report.counts.failed == 0
    return report.counts.frames


def preparing(folder: Path, outputs: Path, rounds: int) -> dict[str, Any]:
    """Measure what motion adds to a stored frame."""
    ways = [("jpeg", motion) for motion in ("none", "native", "reencode")]
    ways += [("none", motion) for motion in ("native", "reencode")]
    with Crew(cores=1) as crew:
        sides: dict[str, Callable[[], Taken]] = {
            f"{frames}_{motion}": partial(
                crew.run,
                partial(prepare, out=outputs / f"{frames}_{motion}", frames=frames, motion=motion),
                [folder],
            )
            for frames, motion in ways
        }
        medians, results = take_turns(sides, rounds=rounds)
    each = {
        name: {clock: 1000 * one[clock] / results[name][0] for clock in ("wall", "cpu")}
        for name, one in medians.items()
    }
    added = {
        motion: {clock: each[f"jpeg_{motion}"][clock] - each["jpeg_none"][clock] for clock in one}
        for motion, one in (("native", each["jpeg_native"]), ("reencode", each["jpeg_reencode"]))
    }
    return {"milliseconds_per_frame": each, "added_by_motion": added}


class Reading:
    """Clips of a store, each with its view, and the clocks of what is done with them.

    Args:
        store: The store's folder.
        stride: Stored frames from one frame of a clip to the next.
        motion: The recipe's `data.motion`.
        count: Clips in a round.
    """

    def __init__(self, store: Path, stride: int, motion: dict[str, Any], count: int) -> None:
        from tatscli.data.dataset import PretrainClips
        from tatscli.data.view import View, corner_crop
        from tatscli.recipe.schema import Data, Sampling
        from tatscli.recipe.schema import Motion as Section
        from tatscli.store.reader import Store

        opened, rng = Store.open(store), random.Random(0)
        data = Data(
            store=str(store),
            frames=FRAMES,
            size=SIZE,
            sampling=Sampling(stride=stride),
            motion=Section(**motion),
        )
        rows = opened.part(None)
        self.clips = PretrainClips(opened, rows, data, patch=PATCH, seed=0)
        self.lengths = [row.frames for row in opened.rows]
        self.wanted: list[tuple[int, list[int], View]] = []
        for _ in range(count):
            row = rng.choice(rows)
            record = opened.rows[row]
            start = rng.randrange(record.frames - (FRAMES - 1) * stride)
            view = corner_crop(
                record.height,
                record.width,
                data.view_size,
                scales=data.crop_scales,
                flip=0.0,
                rng=rng,
            )
            self.wanted.append((row, [start + stride * n for n in range(FRAMES)], view))

    def round(self) -> dict[str, Clock]:
        """Read every clip, frames and motion in turns; return milliseconds a clip."""
        from tatscli.data.tracks import pieces

        parts = ("decode", "cut", "track", "view", "field")
        spent = {part: {"wall": 0.0, "cpu": 0.0} for part in parts}

        def timed(part: str, function: Callable[..., Any], *given: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(*given)
            spent[part]["wall"] += 1000 * (time.perf_counter() - wall) / len(self.wanted)
            spent[part]["cpu"] += 1000 * (time.process_time() - cpu) / len(self.wanted)
            return result

        source = self.clips.motion_source
        seen = partial(source.seen, patch=PATCH, name="a clip")
        for row, frames, view in self.wanted:
            pictures = timed("decode", self.clips.pictures, row, frames)
            video = timed("cut", view.frames, pictures)
            track = timed("track", source.track, row, frames)
            timed("view", seen, view, video, track, frames)
        for row, frames, _ in self.wanted:
            self.clips.pictures(row, frames)  # so that the field finds the caches as `track` does
            parts_read = pieces(frames, self.lengths[row])
            reach = range(parts_read[0].start, parts_read[-1].stop)
            timed("field", source.store.motion, row, reach)
        for whole, parts in {"frames": ("decode", "cut"), "motion": ("track", "view")}.items():
            spent[whole] = {
                clock: sum(spent[part][clock] for part in parts) for clock in ("wall", "cpu")
            }
        return spent


def reading(store: Path, rounds: int, count: int) -> dict[str, Any]:
    """Measure reading at two strides, with and without the camera's motion."""
    cases = {
        f"stride {stride}, camera {camera}": Reading(store, stride, {"camera": camera}, count)
        for stride in (2, 4)
        for camera in ("none", "median", "affine")
    }
    taken: dict[str, list[dict[str, Clock]]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            one = case.round()
            if number:
                taken[name].append(one)
    found = {}
    for name, runs in taken.items():
        parts = {part: median_of([one[part] for one in runs]) for part in runs[0]}
        percent = {
            part: {clock: 100 * parts[part][clock] / one for clock, one in parts["frames"].items()}
            for part in ("field", "motion")
        }
        found[name] = {"milliseconds_per_clip": parts, "percent_of_frames": percent}
    return found


def flow(device: str, rounds: int) -> Clock:
    """Measure RAFT-small on the pairs of a clip."""
    import torch
    from torchvision.models.optical_flow import raft_small

    model = raft_small(weights=None).eval().to(device)
    clip = torch.rand(FRAMES, 3, SIZE, SIZE, device=device) * 2 - 1

    @torch.no_grad()
    def pairs() -> Any:
        return model(clip[:-1], clip[1:], num_flow_updates=6)

    return milliseconds({"flow": pairs}, rounds=rounds, calls=1, device=device)["flow"]


def against_flow(
    found: dict[str, Any], prepared: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Hold ours against optical flow: the frames of a clip are two apart."""
    plan_options = {"batch": BATCH, "device": options["device"]}
    plan = milliseconds(
        {"mgm": mask_sides(0.75, plan_options)["mgm"]},
        rounds=options["rounds"],
        calls=3,
        device=options["device"],
    )["mgm"]
    plan = {clock: one / BATCH for clock, one in plan.items()}
    raft = flow(options["device"], options["flow_rounds"])
    added = prepared["added_by_motion"]
    result: dict[str, Any] = {
        "raft_small": raft,
        "plan": plan,
        "pair_by_frame": {
            motion: {clock: raft[clock] / (FRAMES - 1) / one[clock] for clock in raft}
            for motion, one in added.items()
        },
        "by_ours": {},
        "by_ours_with_prepare": {},
    }
    for stride in (2, 4):
        read = found[f"stride {stride}, camera none"]["milliseconds_per_clip"]["motion"]
        ours = {clock: read[clock] + plan[clock] for clock in raft}
        name, spanned = f"stride {stride}", (FRAMES - 1) * stride + 1
        result["by_ours"][name] = {clock: raft[clock] / ours[clock] for clock in raft}
        result["by_ours_with_prepare"][name] = {
            motion: {clock: raft[clock] / (ours[clock] + spanned * one[clock]) for clock in raft}
            for motion, one in added.items()
        }
    return result


def median_of(runs: list[Clock]) -> Clock:
    """Return the median of every clock."""
    return {clock: statistics.median(one[clock] for one in runs) for clock in runs[0]}


def rounded(value: Any) -> Any:
    """Return nested figures as they are printed."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = {"files": 4, "frames": 200, "clips": 32, "rounds": 7, "prepare-rounds": 3}
    for name, default in (defaults | {"flow-rounds": 3, "threads": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    add_inputs_option(parser)
    options = vars(parser.parse_args())
    import torch

    torch.set_num_threads(options["threads"])
    result: dict[str, Any] = {
        "settings": {name: one for name, one in options.items() if name != "inputs"},
        "machine": machine(options["device"]),
        "load_before": load(),
    }
    with workplace(options["inputs"]) as (inputs, outputs):
        folder = outputs / "videos"
        files, frames = options["files"], options["frames"]
        data_set(inputs, folder, STORED, files=files, frames=frames)
        prepared = preparing(folder, outputs, options["prepare_rounds"])
        found = reading(outputs / "jpeg_reencode", options["rounds"], options["clips"])
        result |= {
            "prepare": prepared,
            "reading": found,
            "against_flow": against_flow(found, prepared, options),
        }
    result["load_after"] = load()
    print(json.dumps(rounded(result), indent=2))


if __name__ == "__main__":
    main()
