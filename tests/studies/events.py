"""Do long clips pay? Videos of 128 frames whose class no 16 frames tell.

    PYTHONPATH=. python tests/studies/events.py --out OUT [--arms ...] [--seeds 0 1 2]
    PYTHONPATH=. python tests/studies/events.py --out OUT --arms adaptive "adaptive latents"
        [--tokenizer RUN]
    PYTHONPATH=. python tests/studies/events.py --table

The videos (`event_videos.py`) are the same for all: 300 to train on, 152 to score. Arms differ in
the frames that they see and in what their decoder predicts; batches, steps, rates and the model are
alike. Each is pretrained without labels, scored by the attentive probe, then fine-tuned and scored.

Yardsticks: `untrained` has the same probe on the encoder as training begins, and the same
fine-tuning from there, which is from scratch. 16 consecutive frames are a window anywhere in the
video, in training and scoring (a store of windows cut at random, four of a video): the middle one
alone would tell 0.41.

Written down before the run. Chance is 0.25; three seeds; "above" is a difference of means that is
larger than 0.08 (two deviations of one score of 152 videos are 0.07), with the lower end of one
above the mean of the other.

1. Sanity: the best decision from 16 consecutive frames, and both arms of 16 frames, are at chance
   (0.25, within 0.07); from scratch, 128 frames are above it.
2. Long clips pay if 64 or 128 frames, pretrained, are above 16 and above their own `untrained`.
3. A decoder budget of 15 % is good enough if `random` is not below `128`, and its pretraining
   takes less processor time. What follows motion (`flow`, `everest`) pays if it is above `random`
   and `uniform`.
4. The tokenizer's choice pays if `adaptive` is above `random`, `uniform`, `flow` and `everest`;
   its targets, if `adaptive latents` is above `adaptive`.

What is done already is not done again. One thread, one process; raw figures go to
`docs/figures/events.json`. Settings were chosen on other videos of the same kind (`--tune`).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tatscli.recipe.load import load_recipe
from tatscli.tasks.pretrain import pretrain
from tatscli.video.encode import write_video
from tests.studies.arms import Arm, go_on, keep, prepare, run_arm, silent, table
from tests.studies.event_videos import CLASSES, FRAMES, SIDE, WINDOW, render, window_oracle

FIGURES = Path(__file__).resolve().parents[2] / "docs/figures/events.json"
FPS = 25
TRAIN, VAL = 75, 38  # videos of a class
TUNE_SEED = 1  # of the videos that settings are chosen on; those of the study have 0
CUTS = 4  # windows of a video in the store of windows
ENCODER = {"preset": "veryfast", "crf": "12", "threads": "1", "x264-params": "asm=0"}
FULL = "data.sampling={mode: uniform}"  # 128 of 128 frames are all of them
SIGHTS = {
    "16 window": ("data.frames=16", "data.sampling={mode: dense, stride: 1}"),
    "16 spread": ("data.frames=16", FULL),
    "64": ("data.frames=64", FULL),
    "128": ("data.frames=128", FULL),
}
BUDGETS = {
    "random": "predict={kind: random}",
    "uniform": "predict={kind: uniform, every: 7}",
    "flow": "predict={kind: flow}",
    "everest": "predict={kind: everest}",
}
ADAPTIVE = {
    "adaptive": "targets=[{{kind: pixels, normalize: false}}]",
    "adaptive latents": "targets=[{{kind: latents, tokenizer: {{kind: run, path: {run}}}}}]",
}
CHOSEN = "predict={{kind: tokenizer, tokenizer: {{kind: run, path: {run}}}}}"
TOKENIZER = (  # trained on `tokenizer/small` where no run is named
    "data.split=train",
    "data.frames=16",
    f"data.size={SIDE}",
    "data.sampling={mode: dense, stride: 1}",
    "data.crop_scales=[1]",
    "data.flip=0",
    # A window has 4 slices of 9 codes; of those behind the first slice a half is kept.
    "tokenizer={kind: adaptive, stride: 8, patch: 4, widths: [32, 64], blocks: 1, tubelet: 4,"
    " keep: 13, scorer_width: 16, ema: null}",
    "optim.epochs=20",
    "optim.total_batch=10",
    "optim.batch_per_device=10",
    "run.threads=1",
    "data.workers=0",
)
BASE = "demo"
RECIPE = (
    f"data.size={SIDE}",
    "model={width: 64, depth: 3, heads: 2, tubelet: 4, patch: 8}",
    "mask={kind: tube, ratio: 0.75}",  # of 9 sites 3 are seen
    "head={kind: decoder, depth: 1, width: 64, heads: 2}",
    "targets=[{kind: pixels, normalize: false}]",
    "optim.epochs=20",  # 1,500 steps: many small ones leave the plateau of the mean sooner
    "optim.total_batch=4",
    "optim.batch_per_device=4",
    "optim.base_lr=0.128",  # 2e-3 at this batch
    "optim.warmup_epochs=2",
    "finetune.head={pool: attention, norm: batch}",
    "finetune.head_scale=1",
    "finetune.augment.label_smoothing=0",
    "finetune.optim.epochs=12",
    "finetune.optim.total_batch=10",
    "finetune.optim.batch_per_device=10",
    "finetune.optim.base_lr=5e-2",
    "finetune.optim.warmup_epochs=1",
    "evaluate.probe.rates=[1e-2, 3e-2]",
    "evaluate.probe.decays=[0.01]",
    "evaluate.probe.epochs=40",
    "evaluate.probe.batch=32",
    "run.save_every=5",
    "run.threads=1",
    "data.workers=0",
)


def arms(windows: Path, tokenizer: Path | None) -> dict[str, Arm]:
    """Return what each arm is, yardsticks first."""
    scored = {"16 window": windows}
    whole = SIGHTS["128"]
    found = {
        f"untrained {sight}": Arm(words, scored.get(sight), pretrained=False)
        for sight, words in SIGHTS.items()
    }
    found |= {sight: Arm(words, scored.get(sight)) for sight, words in SIGHTS.items()}
    found |= {name: Arm((*whole, predict)) for name, predict in BUDGETS.items()}
    for name, targets in ADAPTIVE.items():
        words = (CHOSEN.format(run=tokenizer), targets.format(run=tokenizer))
        found[name] = Arm((*whole, *words))
    return found


def write_videos(folder: Path, seed: int) -> None:
    """Render the videos, and list windows cut from each at random."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        lines, whole = ["path,label,start,end,name\n"], ["path,label\n"]
        for number in range(count * len(CLASSES)):
            order = CLASSES[number % len(CLASSES)]
            generator = np.random.default_rng([seed, ("train", "val").index(split), number])
            path = f"{split}/{number:03}.mp4"
            write_video(folder / path, render(order, generator), fps=FPS, options=ENCODER)
            whole.append(f"{path},{order}\n")
            for cut in range(CUTS):
                start = generator.integers(FRAMES - WINDOW + 1)
                times = f"{start / FPS:.2f},{(start + WINDOW) / FPS:.2f}"
                lines.append(f"{path},{order},{times},{number:03}_{cut}\n")
        for name, rows in (("whole", whole), ("windows", lines)):
            (folder / f"{name}-{split}.csv").write_text("".join(rows))


def stores(out: Path, seed: int) -> dict[str, Path]:
    """Make the stores of whole videos and of windows, unless they are there."""
    videos = out / f"videos-{seed}"
    if not (videos / "windows-val.csv").is_file():
        write_videos(videos, seed)
    found = {}
    for name in ("whole", "windows"):
        found[name] = out / f"{name}-{seed}"
        lists = (f"{split}={videos / f'{name}-{split}.csv'}" for split in ("train", "val"))
        prepare(videos, found[name], *lists)
    return found


def trained_tokenizer(out: Path, store: Path) -> Path:
    """Train the tokenizer of the adaptive arms, unless that was done before."""
    run, done = out / "tokenizer", out / "tokenizer.done"
    if not done.is_file():
        loaded = load_recipe("tokenizer/small", [*TOKENIZER, f"data.store={store}"])
        began = time.process_time()
        found = pretrain(loaded, reporter=silent(), out=run, **go_on(run))
        seconds = time.process_time() - began
        done.write_text(json.dumps({"loss": found["loss"], "seconds": seconds}))
    print("tokenizer", done.read_text())
    return run


def main() -> None:
    """Run the arms that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--arms", nargs="*", default=None, help="by default all but adaptive ones")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--tokenizer", type=Path, help="trained run of adaptive arms; else one is trained"
    )
    parser.add_argument("--tune", nargs="*", help="KEY=VALUE to try, on videos of their own")
    parser.add_argument("--table", action="store_true", help="print the table and stop")
    options = parser.parse_args()
    names = list(arms(Path(), None))
    if options.table:
        print(table(FIGURES, names))
        return
    if options.out is None:
        parser.error("--out is needed to run arms")
    wanted = options.arms or [name for name in names if name not in ADAPTIVE]
    torch.set_num_threads(1)
    tuning = options.tune is not None
    made = stores(options.out, TUNE_SEED if tuning else 0)
    store = made["whole"]
    facts: dict[str, Any] = {"chance": 1 / len(CLASSES), "16-frame oracle": window_oracle()}
    print(facts)
    tokenizer = options.tokenizer
    if tokenizer is None and set(wanted) & set(ADAPTIVE):
        tokenizer = trained_tokenizer(options.out, store)
    known = arms(made["windows"], tokenizer)
    common = (*RECIPE, *(options.tune or ()))
    where = options.out / ("tune" if tuning else "cells")
    where.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in wanted:
            if tuning:
                (where / f"{name.replace(' ', '-')}-{seed}.json").unlink(missing_ok=True)
            found = run_arm(
                name, known[name], seed, base=BASE, common=common, store=store, out=where
            )
            print(found, flush=True)
            if not tuning:
                keep(FIGURES, facts, [found])
    if not tuning:
        print(table(FIGURES, names))


if __name__ == "__main__":
    main()
