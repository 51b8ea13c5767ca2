"""The demo's labelled set as H.264 files: `train/<class>/NNN.mp4` and `val/<class>/NNN.mp4`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tatscli.console import Reporter
from tatscli.demo.movements import MOVEMENTS, render
from tatscli.video.encode import write_video


@dataclass(frozen=True, slots=True)
class SetSize:
    """How much is rendered.

    Attributes:
        train: Clips of each class to train on.
        val: Clips of each class to score.
        frames: Frames in a clip.
        side: Height and width in pixels.
    """

    train: int = 40
    val: int = 25
    frames: int = 20
    side: int = 48


FPS = 25

_ENCODER = {
    "preset": "veryfast",
    "threads": "1",
    # x264's SIMD lookahead decides differently from run to run on pictures this small (6 clips of
    # 40 differed); without it the same seed gives the same bytes.
    "x264-params": "asm=0",
}


def write_set(folder: Path, size: SetSize, *, seed: int, reporter: Reporter) -> None:
    """Render and encode all clips; every clip depends only on the seed and its own name."""
    clips = list(_clips(size))
    with reporter.progress(clips, description="render", unit="clip") as bar:
        for split, label, number in bar:
            name = list(MOVEMENTS)[label]
            generator = np.random.default_rng([seed, ("train", "val").index(split), label, number])
            pictures = render(
                MOVEMENTS[name], frames=size.frames, side=size.side, generator=generator
            )
            path = folder / split / name / f"{number:03}.mp4"
            write_video(path, pictures, fps=FPS, options=_ENCODER)


def _clips(size: SetSize) -> Iterator[tuple[str, int, int]]:
    """Name every clip: its split, class and number."""
    for split, count in (("train", size.train), ("val", size.val)):
        for label in range(len(MOVEMENTS)):
            for number in range(count):
                yield split, label, number
