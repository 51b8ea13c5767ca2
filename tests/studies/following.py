"""Which masks keep a moving patch hidden, before a ground at rest and before moving cameras?

    PYTHONPATH=. python tests/studies/following.py

Prints the share of slices in which nine tenths of the patch are hidden, at ratio 0.5 / 0.75, for
the scenes of `tests/tasks/test_masks_on_video.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from tests.clips import CLEAN_VECTORS
from tests.tasks.test_masks_on_video import CAMERAS, clip_of, covered, prepared

MASKS = ("tube", "block", "simulated", "mgm", "mgm_topk", "mgm_advect")


def tats(*words: object) -> SimpleNamespace:
    """Run a command line."""
    command = [sys.executable, "-m", "tatscli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    return SimpleNamespace(code=done.returncode, stderr=done.stderr)


def main() -> None:
    """Print one line a scene and model of the camera."""
    print("| ground | camera | " + " | ".join(f"`{kind}`" for kind in MASKS) + " |")
    print("|---" * (len(MASKS) + 2) + "|")
    for name, camera in CAMERAS.items():
        with TemporaryDirectory() as folder:
            store = prepared(Path(folder), tats, camera, "clip.mp4", options=CLEAN_VECTORS)
            for model in ("none", "median", "affine"):
                clip = clip_of(store, camera=model)
                cells = [
                    f"{covered(kind, clip):.2f} / {covered(kind, clip, 0.75):.2f}" for kind in MASKS
                ]
                print(f"| {name} | `{model}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
