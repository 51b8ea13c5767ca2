"""Draw the picture of the README, `docs/figures/masks.png`: three masks over one rendered clip.

PYTHONPATH=. python docs/picture.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tatscli.cli import main
from tatscli.demo.movements import MOVEMENTS, render
from tatscli.video.encode import write_video

PICTURE = Path(__file__).with_name("figures") / "masks.png"
SEED = 254  # of the few whose sprite stays away from the border
COLOURS = 128


def draw(out: Path) -> None:
    """Render the clip, compare the masks on it, and save the sheet with few colours."""
    generator = np.random.default_rng(SEED)
    pictures = render(MOVEMENTS["clockwise"], frames=32, side=224, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        clip, sheet = Path(folder, "clip.mp4"), Path(folder, "masks.png")
        options = {"preset": "veryfast", "threads": "1", "x264-params": "asm=0"}  # repeatable
        write_video(clip, pictures, fps=25, options=options)
        words = ["visualize-masks", str(clip), "--compare", "tube,mgm", "--ratio", "0.75"]
        words += ["--stride", "1", "--columns", "5", "--windows", "1", "--out", str(sheet), "-q"]
        if main(words) != 0:
            raise SystemExit("`tats visualize-masks` failed")
        few = Image.open(sheet).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(out, optimize=True)


if __name__ == "__main__":
    draw(PICTURE)
