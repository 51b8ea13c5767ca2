"""Inputs of the benchmarks: rendered scenes with moving things, noise and a moving camera.

Flat colours would be decoded for nothing and white noise would cost the decoder more than any
film: the scenes are smooth, with edges, a little grain and three things that move on their own, and
weigh about as much as those of the public data sets (their bit rates are in the results).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.clips import render, texture

SIZES = {"720p": (1280, 720), "340x256": (340, 256)}

CODECS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "h264": ("libx264", {}, None),
    "h264 bf=0:ref=1": ("libx264", {"bf": "0", "refs": "1"}, None),
    "mpeg4": ("mpeg4", {}, 8),
}
"""FFmpeg's encoder, its options, and pixels for each bit of a second for those that want a rate."""


def scene(size: tuple[int, int], *, frames: int = 100, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield RGB pictures of a camera that pans over a ground with three moving things.

    Args:
        size: Width and height.
        frames: How many.
        seed: Scenes of different seeds share nothing.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    scale = max(1, height // 128)  # no detail finer than four times this
    pan = rng.integers(-2, 3, 2)
    room = np.abs(pan) * frames
    ground = _enlarged(*(np.array([height, width]) + room[::-1]), scale, seed)
    things = [
        (
            _enlarged(height // 3, width // 5, scale, seed + 10 + index),
            rng.uniform(0, 0.6, 2) * (width, height),
            rng.uniform(-4, 4, 2) * height / 360,
        )
        for index in range(3)
    ]
    grain = rng.normal(0, 4, (8, height, width, 1)).round().astype(np.int16)
    start = np.where(pan < 0, room, 0)
    for index in range(frames):
        left, top = start + index * pan
        picture = ground[top : top + height, left : left + width].astype(np.int16)
        for thing, place, step in things:
            tall, wide = thing.shape[:2]
            x, y = np.round(place + index * step).astype(int) % (width - wide, height - tall)
            picture[y : y + tall, x : x + wide] = thing
        yield (picture + grain[index % 8]).clip(0, 255).astype(np.uint8)


def rendered(
    folder: Path, codec: str, size: str, *, frames: int = 100, seed: int = 0, fps: float = 25
) -> Path:
    """Return a scene as a file in a folder; one that is already there is taken.

    Args:
        folder: Where it lies.
        codec: Key of `CODECS`.
        size: Key of `SIZES`.
        frames: How many.
        seed: Of the scene.
        fps: Frames a second.
    """
    encoder, options, pixels = CODECS[codec]
    name = f"{codec} {size} {frames} {seed}".replace(" ", "_").replace("=", "").replace(":", "_")
    path = folder / f"{name}.mp4"
    if not path.exists():
        width, height = SIZES[size]
        part = render(
            folder / f".{name}.mp4",
            scene(SIZES[size], frames=frames, seed=seed),
            codec=encoder,
            fps=fps,
            options=options,
            bit_rate=None if pixels is None else width * height // pixels * 12,
        )
        part.replace(path)
    return path


def data_set(
    inputs: Path, folder: Path, size: str, *, files: int, frames: int, kinds: int = 4
) -> Path:
    """Fill a folder with H.264 files as x264 makes them; some scenes, each of them several times.

    Args:
        inputs: Where the scenes lie.
        folder: What is filled.
        size: Key of `SIZES`.
        files: How many.
        frames: Of each.
        kinds: Different scenes.
    """
    folder.mkdir(parents=True)
    for number in range(files):
        source = rendered(inputs, "h264", size, frames=frames, seed=number % kinds)
        os.link(source, folder / f"{number:05d}.mp4")
    return folder


def megabits(path: Path, seconds: float) -> float:
    """Return the bit rate of a file in Mbit/s."""
    return round(path.stat().st_size * 8 / seconds / 1e6, 2)


def add_inputs_option(parser: argparse.ArgumentParser) -> None:
    """Add `--inputs FOLDER`."""
    parser.add_argument(
        "--inputs", type=Path, help="keep the rendered inputs here; a temporary folder otherwise"
    )


@contextmanager
def workplace(inputs: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the folder of inputs and an empty one for outputs beside it, which is deleted."""
    if inputs is not None:
        inputs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tats-bench-", dir=inputs) as temporary:
        outputs = Path(temporary)
        (outputs / "inputs").mkdir()
        yield inputs or outputs / "inputs", outputs


def _enlarged(height: int, width: int, scale: int, seed: int) -> np.ndarray:
    """Return a texture of soft patches `scale` times as coarse as that of the tests."""
    rows, columns = -(-height // scale) + 1, -(-width // scale) + 1
    coarse = texture(rows, columns, seed=seed).astype(np.float32)
    for axis, length in ((0, height), (1, width)):
        place = np.arange(length) / scale
        low = place.astype(int)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)).astype(np.float32)
        coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, low + 1, axis) * share
    return coarse.round().astype(np.uint8)
