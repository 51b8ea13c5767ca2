"""What frozen probes see in encoders of the demo's movements: untrained, tube masks, TATS.

Written down before the run: for each of three seeds, which also draw the videos, the recipe `demo`
is pretrained with `mask.kind: tube` and as it is, and attentive and linear probes read both
encoders and an untrained one, with the defaults of `evaluate.probe` on 200 validation videos that
are scored once. What comes out is told as it is; a probe sees the movements in frozen features
where it is above chance (0.125) by more than two standard errors of 200 videos (0.047).

    python tests/studies/yardsticks.py --out FOLDER [--seeds 0 1 2]

One thread a process; what is there already is not done again. Figures: FOLDER/figures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.demo.clips import SetSize, write_set

ARMS = {"untrained": [], "tube": ["mask={kind: tube, ratio: 0.75}"], "tats": []}
PROTOCOLS = ("attentive", "linear")


def tats(*words: object) -> dict[str, Any]:
    """Run a command and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "tatscli", *map(str, words), "--json", "--quiet"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_seed(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """Train both arms and probe all three encoders."""
    folder = out / f"seed{seed}"
    store, figures = folder / "store", folder / "figures.json"
    if figures.is_file():
        return json.loads(figures.read_text())
    if not (store / "dataset.json").is_file():
        write_set(folder / "videos", SetSize(), seed=seed, reporter=Reporter(quiet=True))
        tats("prepare", folder / "videos", "--out", store, "--workers", 1)
    found: dict[str, dict[str, float]] = {}
    for arm, changes in ARMS.items():
        run = folder / ("tats" if arm == "untrained" else arm)
        if not run.with_suffix(".done").is_file():
            resume = ["--resume"] if (run / "checkpoints" / "last").exists() else ["--overwrite"]
            keys = [f"data.store={store}", f"run.seed={seed}", "data.workers=0"]
            tats("pretrain", "demo", *keys, *changes, "--out", run, *resume)
            run.with_suffix(".done").write_text("")
        more = ["--untrained"] if arm == "untrained" else []
        found[arm] = {
            protocol: tats("evaluate", run, "--protocol", protocol, *more, "data.workers=0")["top1"]
            for protocol in PROTOCOLS
        }
    figures.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    found = {str(seed): run_seed(seed, options.out) for seed in options.seeds}
    (options.out / "figures.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
