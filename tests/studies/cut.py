"""A square cut out of every video of a folder, such as the mouth of a talker.

Faces of one talker lie so nearly at the same place that a linear classifier of pixels looks good;
with a shift they do not.
"""

from __future__ import annotations

import random
import shutil
from fractions import Fraction
from pathlib import Path

import av

DONE = ".done"


def cut_folder(source: Path, target: Path, square: tuple[int, int, int], *, shift: int = 0) -> Path:
    """Cut all videos of a folder, and copy what else is in it; return the new folder.

    Args:
        source: The folder.
        target: The new one; nothing is done where it is complete.
        square: Top, left and side, in pixels.
        shift: The square of a video lies up to so many pixels away, in both directions; where
            exactly follows from the video's name.
    """
    if (target / DONE).exists():
        return target
    for path in sorted(source.rglob("*")):
        new = target / path.relative_to(source)
        if path.is_dir():
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".mp4":
            top, left, side = square
            draw = random.Random(path.name)
            across, down = draw.randint(-shift, shift), draw.randint(-shift, shift)
            cut(path, new, (top + down, left + across, side))
        else:
            shutil.copyfile(path, new)
    (target / DONE).touch()
    return target


def cut(source: Path, target: Path, square: tuple[int, int, int]) -> None:
    """Write a square of a clip, at a quality where what encoding loses does not matter."""
    top, left, side = square
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        rate = reader.streams.video[0].average_rate or Fraction(25)
        stream = writer.add_stream("libx264", rate, options={"crf": "12"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for frame in reader.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")[top : top + side, left : left + side]
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        writer.mux(stream.encode(None))
