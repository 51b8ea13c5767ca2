"""Accuracy and time of the x264 settings with which `--motion reencode` finds vectors.

Pictures whose motion is known go through the estimator with its own settings, with plain presets,
and with other qualities: pans by whole and by quarter pixels, a slow and a fast one, a patch over a
still ground, and the same under noise. A cell is wrong where it is more than a quarter of a pixel
off; cells at the edge of the picture and of the patch do not count, and intra-coded cells count as
zero motion.

Prints one JSON object: per cent of wrong cells by scene, and processor milliseconds a picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.measure import load

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.clips import moving_patch, pan, static, texture

HEIGHT, WIDTH, CELL = 256, 456, 16
PATCH = {"step": (4, 2), "side": 96, "start": (32, 32)}

SCENES = {
    "pan (3, -2)": (3, -2),
    "pan (18, -11)": (18, -11),
    "pan (1.25, -0.75)": (1.25, -0.75),
    "pan (0.5, 0.25)": (0.5, 0.25),
    "patch (4, 2)": PATCH["step"],
    "still, noise 6": (0, 0),
    "pan (3, -2), noise 6": (3, -2),
    "pan (1.25, -0.75), noise 6": (1.25, -0.75),
    "patch (4, 2), noise 6": PATCH["step"],
}

_SAME = {"tune": "zerolatency", "bf": "0", "refs": "1", "g": "100000000"}
_ENDLESS = {"x264-params": "scenecut=0:keyint=infinite"}


def settings() -> dict[str, dict[str, str]]:
    """Return the options of the encoder by name; `ours` first."""
    from tatscli.video import reencode

    found = {"ours": reencode._ENCODER}
    for crf in (18, 28):
        found[f"ours, crf {crf}"] = {**reencode._ENCODER, "crf": str(crf)}
    parameters = reencode._ENCODER["x264-params"]
    for name, old, new in (
        ("ours, subme 1", "subme=2", "subme=1"),
        ("ours, subme 1, me dia", "subme=2:me=hex:merange=24", "subme=1:me=dia"),
        (
            "ours, subme 1, me dia, 16 x 16 alone",
            "subme=2:me=hex:merange=24:partitions=p8x8",
            "subme=1:me=dia:partitions=none",
        ),
    ):
        found[name] = {**reencode._ENCODER, "x264-params": parameters.replace(old, new)}
    for preset in ("ultrafast", "superfast", "veryfast", "medium"):
        for crf in (18, 23, 28):
            found[f"{preset}, crf {crf}"] = {
                "preset": preset,
                "crf": str(crf),
                **_SAME,
                **_ENDLESS,
            }
    return found


def pictures(name: str, frames: int) -> Iterator[np.ndarray]:
    """Yield the RGB pictures of a scene."""
    step = SCENES[name]
    size: dict[str, Any] = {"frames": frames, "height": HEIGHT, "width": WIDTH}
    if name.startswith("patch"):
        found = moving_patch(**PATCH, **size)  # type: ignore[arg-type]
    elif name.startswith("still"):
        found = static(**size)
    elif all(float(one).is_integer() for one in step):
        found = pan(step, **size)  # type: ignore[arg-type]
    else:
        found = _slow_pan(step, frames)
    rng = np.random.default_rng(0)
    for picture in found:
        if "noise" in name:
            noisy = picture + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
            picture = noisy.round().clip(0, 255).astype(np.uint8)
        yield picture


def _slow_pan(step: tuple[float, float], frames: int) -> Iterator[np.ndarray]:
    """Yield a pan by quarters of a pixel: moved four times as large, then averaged."""
    dx, dy = (round(4 * one) for one in step)
    room = 4 * max(abs(dx), abs(dy)) * frames
    # Coarse enough that a camera could have taken it: no detail finer than four pixels.
    ground = texture((4 * HEIGHT + room) // 4, (4 * WIDTH + room) // 4).repeat(4, 0).repeat(4, 1)
    for index in range(frames):
        left = room // 2 - index * dx
        top = room // 2 - index * dy
        part = ground[top : top + 4 * HEIGHT, left : left + 4 * WIDTH]
        yield part.reshape(HEIGHT, 4, WIDTH, 4, 3).mean((1, 3)).round().astype(np.uint8)


def truth(name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the motion (gh, gw, 2) that leads to a picture, and which cells count."""
    rows, columns = HEIGHT // CELL, -(-WIDTH // CELL)
    field = np.broadcast_to(np.array(SCENES[name], float), (rows, columns, 2)).copy()
    counts = np.zeros((rows, columns), bool)
    counts[2:-2, 2:-3] = True
    if not name.startswith("patch"):
        return field, counts
    y, x = np.mgrid[:rows, :columns] * CELL
    side, step, start = PATCH["side"], PATCH["step"], PATCH["start"]
    (left, top), (dx, dy) = (
        [begin + index * by for begin, by in zip(start, step, strict=True)],  # type: ignore[call-overload]
        step,
    )
    inside = (x >= left + 8) & (x + CELL <= left + side - 8)
    inside &= (y >= top + 8) & (y + CELL <= top + side - 8)
    near = (x + CELL > left - dx - CELL) & (x < left + side + CELL)
    near &= (y + CELL > top - dy - CELL) & (y < top + side + CELL)
    field[~inside] = 0
    return field, counts & (inside | ~near)


def measure(options: dict[str, str], scene: str, frames: int) -> tuple[float, float, float]:
    """Return the share of wrong cells, their mean error in pixels, and milliseconds a picture."""
    from av.video.frame import VideoFrame

    from tatscli.video import reencode
    from tatscli.video.field import rasterise

    stored = [
        VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
            format="yuvj420p"
        )
        for picture in pictures(scene, frames)
    ]
    usual = reencode._ENCODER
    reencode._ENCODER = options
    try:
        estimate = reencode.MotionEstimator()
        estimate(stored[0])
    finally:
        reencode._ENCODER = usual
    errors, spent = [], 0.0
    for index, picture in enumerate(stored[1:], 1):
        begun = time.process_time()
        vectors = estimate(picture)
        spent += time.process_time() - begun
        size = (WIDTH, HEIGHT)
        field, _ = rasterise(vectors, coded=size, stored=size, cell=CELL)
        wanted, counts = truth(scene, index)
        errors.append(np.abs(field - wanted).max(-1)[counts])
    error = np.concatenate(errors)
    return float((error > 0.25).mean()), float(error.mean()), 1000 * spent / (len(stored) - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=24)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "settings": {"frames": options.frames, "width": WIDTH, "height": HEIGHT, "cell": CELL},
        "load_before": load(),
        "by_setting": {},
    }
    for name, encoder in settings().items():
        measured = {scene: measure(encoder, scene, options.frames) for scene in SCENES}
        result["by_setting"][name] = {
            "per_cent_wrong": {
                scene: round(100 * wrong, 1) for scene, (wrong, _, _) in measured.items()
            },
            "mean_per_cent_wrong": round(
                100 * statistics.mean(wrong for wrong, _, _ in measured.values()), 1
            ),
            "mean_error": {scene: round(error, 3) for scene, (_, error, _) in measured.items()},
            "milliseconds": {
                kind: round(
                    statistics.mean(
                        ms for name, (_, _, ms) in measured.items() if ("noise" in name) == noisy
                    ),
                    2,
                )
                for kind, noisy in (("clean", False), ("noisy", True))
            },
        }
    result["load_after"] = load()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
