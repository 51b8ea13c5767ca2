"""Does a learned mask find what moves? One small patch moves over a still textured ground.

    python tests/studies/patch.py OUT

The ground is the same in all clips, as before a fixed camera; the patch has a texture, a place and
a direction of its own in each. Every mask is trained for 600 steps with the recipe `demo` at ratio
0.9 and tokens of 8 pixels. Prints the share of the visible tokens in the tenth of the clip that
moves most (0.1 is chance), the mean motion of visible tokens by that of all, and the policy's
entropy: means of the last hundred steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.clips import CLEAN_VECTORS, render, texture

SIDE, PATCH, FRAMES, CLIPS = 48, 12, 20, 320
SAMPLER = "width: 64, heads: 4, base_lr: 3.0e-2, warmup: 0.1, ratio: 0.9"
MASKS = {
    "random": "kind: random, ratio: 0.9",
    "adamae": f"kind: adamae, {SAMPLER}",
    "tats, entropy 1 (default)": f"kind: tats, {SAMPLER}",
    "tats, entropy 0.3": f"kind: tats, entropy: 0.3, {SAMPLER}",
    "tats, entropy_target 0.85": f"kind: tats, entropy_target: 0.85, {SAMPLER}",
}


def clip(seed: int) -> Iterator[np.ndarray]:
    """Yield the pictures of a clip: a dark ground, and a light patch that bounces off the edges."""
    rng = np.random.default_rng(seed)
    ground = texture(SIDE, SIDE, seed=0) // 4 + 20
    patch = texture(PATCH, PATCH, seed=seed + 10_000) // 2 + 120
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.6)
    step, room = speed * np.array([np.cos(angle), np.sin(angle)]), SIDE - PATCH
    start = rng.uniform(0, room, 2)
    for index in range(FRAMES):
        place = np.abs((start + index * step + room) % (2 * room) - room)
        x, y = np.round(place).astype(int)
        picture = ground.copy()
        picture[y : y + PATCH, x : x + PATCH] = patch
        yield picture.astype(np.uint8)


def tats(*words: object) -> None:
    """Run a command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tatscli", *map(str, words), "--quiet"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    """Render, prepare, train every mask and print the table."""
    out = Path(sys.argv[1])
    store = out / "store"
    if not store.exists():
        for number in range(CLIPS):
            render(out / f"videos/{number:03}.mp4", clip(number), options=CLEAN_VECTORS)
        tats("prepare", out / "videos", "--out", store)
    print("| mask | motion share | motion lift | entropy |\n|---|---|---|---|")
    for number, (name, section) in enumerate(MASKS.items()):
        run = out / f"run{number}"
        changes = ["data.split=null", "model.patch=8", "optim.epochs=15", "run.log_every=10"]
        mask = "mask={" + section + "}"
        tats("pretrain", "demo", mask, *changes, "--store", store, "--out", run, "--overwrite")
        lines = (run / "metrics.jsonl").read_text().splitlines()[-10:]
        found = []
        for key in ("motion_share", "motion_lift", "entropy"):
            values = [json.loads(line).get(key) for line in lines]
            known = [value for value in values if value is not None]
            found.append(f"{statistics.mean(known):.2f}" if known else "")
        print(f"| `{name}` | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
