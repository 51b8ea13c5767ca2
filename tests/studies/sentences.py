"""Do long clips pay on real speech? Which digit is said somewhere in a sentence of 75 frames.

    PYTHONPATH=. python tests/studies/sentences.py --out OUT [--arms ...] [--seeds 0 1 2]
    PYTHONPATH=. python tests/studies/sentences.py --table

The sentences of `grid_words` (702 to train on, 149 to score, ten digits), of which the mouth is cut
out as in `grid.py`. The fifth of six words is the digit, on average in the middle of the sentence,
give or take half a second. Arms differ in the frames they see: 16 in the middle (any 16 of the
middle 20 in training), 16 spread over all of it, or 64 of the 75. Batches, steps, rates and the
model are alike. Each is pretrained without labels, scored by the attentive probe, then fine-tuned
and scored. `untrained` has the same probe, and the same fine-tuning, without pretraining.

Written down before the run. Chance is 0.10; two deviations of one score are 0.05 to 0.08. Long
clips pay if 64 frames are above both arms of 16 by more than 0.05 in the mean of the seeds, with
the lowest seed above their means, in the probe or fine-tuned; pretraining pays where an arm is so
above its own `untrained`. Earlier studies of these talkers found pretraining no help to probes at
this length, and fine-tuning at chance (`docs/results.md`): that may well be so again.

What is done already is not done again. One thread, one process; raw figures go to
`docs/figures/sentences.json`. The settings are those of `events.py`, where they apply, and of
`grid.py`: nothing was chosen on these scores.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

from tests.studies.arms import Arm, keep, prepare, run_arm, table
from tests.studies.grid import cut

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs/figures/sentences.json"
SHARED = ROOT.parent / "shared"
FPS = 25
MIDDLE = (27, 47)  # frames
WHOLE = "data.sampling={mode: uniform}"
DENSE = "data.sampling={mode: dense, stride: 1}"
SIGHTS = {
    "16 middle": ("data.frames=16", DENSE),
    "16 spread": ("data.frames=16", WHOLE),
    "64": ("data.frames=64", DENSE),
}
BASE = "demo"
RECIPE = (
    "data.size=32",
    "model={width: 64, depth: 3, heads: 2, tubelet: 4, patch: 8}",
    "mask={kind: tube, ratio: 0.9}",  # of 16 sites 2 are seen
    "head={kind: decoder, depth: 1, width: 64, heads: 2}",
    "targets=[{kind: pixels, normalize: true}]",
    "optim.epochs=8",
    "optim.total_batch=4",
    "optim.batch_per_device=4",
    "optim.base_lr=0.128",
    "optim.warmup_epochs=1",
    "finetune.head={pool: attention, norm: batch}",
    "finetune.head_scale=1",
    "finetune.augment.label_smoothing=0",
    "finetune.optim.epochs=6",
    "finetune.optim.total_batch=10",
    "finetune.optim.batch_per_device=10",
    "finetune.optim.base_lr=5e-2",
    "finetune.optim.warmup_epochs=1",
    "evaluate.probe.rates=[1e-2, 3e-2]",
    "evaluate.probe.decays=[0.01]",
    "evaluate.probe.epochs=20",
    "evaluate.probe.batch=32",
    "run.save_every=4",
    "run.threads=1",
    "data.workers=0",
)


def arms() -> dict[str, Arm]:
    """Return what each arm is, yardsticks first."""
    yardsticks = {f"untrained {name}": Arm(w, pretrained=False) for name, w in SIGHTS.items()}
    return yardsticks | {name: Arm(words) for name, words in SIGHTS.items()}


def stores(data: Path, out: Path) -> dict[str, Path]:
    """Make the store of whole sentences and that of their middles, unless they are there."""
    videos = out / "videos"
    found = {"whole": out / "store", "middle": out / "middle"}
    if not (videos / "middle-val.csv").is_file():
        (videos / "sentences").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            with (data / f"{split}_sentence_digits.csv").open() as file:
                rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
            for path, _ in rows:
                cut(data / path, videos / path)
            whole = "".join(f"{path},{label}\n" for path, label in rows)
            (videos / f"whole-{split}.csv").write_text(f"path,label\n{whole}")
            times = "{:.2f},{:.2f}".format(*(frame / FPS for frame in MIDDLE))
            middle = "".join(f"{path},{label},{times},\n" for path, label in rows)
            (videos / f"middle-{split}.csv").write_text(f"path,label,start,end,name\n{middle}")
    for name, store in found.items():
        lists = (f"{split}={videos / f'{name}-{split}.csv'}" for split in ("train", "val"))
        prepare(videos, store, *lists)
    return found


def main() -> None:
    """Run the arms that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED / "data/grid_words")
    parser.add_argument("--arms", nargs="*", choices=arms(), default=list(arms()))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    options = parser.parse_args()
    if options.table:
        print(table(FIGURES, list(arms())))
        return
    if options.out is None:
        parser.error("--out is needed to run arms")
    if not options.data.is_dir():
        print(f"skipped: `{options.data}` is not there; --data names the folder of grid_words")
        return
    torch.set_num_threads(1)
    made = stores(options.data, options.out)
    cells = options.out / "cells"
    cells.mkdir(exist_ok=True)
    for seed in options.seeds:
        for name in options.arms:
            store = made["middle" if name.endswith("middle") else "whole"]
            found = run_arm(
                name, arms()[name], seed, base=BASE, common=RECIPE, store=store, out=cells
            )
            print(found, flush=True)
            keep(FIGURES, {"chance": 0.1}, [found])
    print(table(FIGURES, list(arms())))


if __name__ == "__main__":
    main()
