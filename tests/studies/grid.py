"""Masks on real talkers: what each is worth, and how soon it is worth what `tube` ends with.

    python tests/studies/grid.py DATA OUT [--jobs 2]

DATA holds `grid_digits` and `grid_verbs`. The mouth is cut out of both; every mask is trained with
every seed for as many passes over the train parts of both, without labels. At each kept checkpoint
frozen features are scored on the val parts: 20 nearest neighbours among mean-pooled features, the
same among all tokens whitened, and a ridge classifier on those; the last also by five folds of all
videos, which halves the error. At the end both tasks are fine-tuned. What is done already is not
done again, so a study that was stopped continues. Prints the tables of `docs/results.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tatscli.console import Reporter
from tatscli.data.views import EvalViews
from tatscli.engine.session import session
from tatscli.evaluation.features import PooledFeatures
from tatscli.evaluation.knn import knn_scores, whiten
from tatscli.evaluation.scores import ViewScores
from tatscli.evaluation.views import score_views
from tatscli.nn.load import load_encoder, open_checkpoint
from tatscli.nn.vit import build_encoder
from tatscli.store.reader import Store

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.studies.cut import cut

TASKS = ("digits", "verbs")
MOUTH = (36, 24, 64)  # top, left and side, in the 112 x 112 pixels of the sets
MASKS = {
    "tube 0.75": "kind: tube, ratio: 0.75",
    "tube 0.9": "kind: tube, ratio: 0.9",
    "block": "kind: block, ratio: 0.75",
    "simulated": "kind: simulated, ratio: 0.75",
    "mgm": "kind: mgm, ratio: 0.75",
    "mgm_topk": "kind: mgm_topk, ratio: 0.75",
    "mgm_advect": "kind: mgm_advect, ratio: 0.75",
    "random": "kind: random, ratio: 0.75",
}
SEEDS = (0, 1, 2)
SCRATCH = "scratch"
PASSES, EVERY = 12, 3
RECIPE = (
    *("data.split=train", "data.size=40", "data.sampling.stride=3", "model.patch=8"),
    *("head.width=64", "head.heads=2", "targets=[{kind: pixels, normalize: true}]"),
    *(f"optim.epochs={PASSES}", "optim.base_lr=3.2e-2", "optim.warmup_epochs=1"),
    *("run.keep=100", f"run.save_every={EVERY}"),
)
FINETUNE = (
    *("finetune.optim.epochs=4", "finetune.optim.base_lr=0.64", "finetune.optim.layer_decay=0.2"),
    *("finetune.head_scale=1", "finetune.augment.label_smoothing=0"),
)
COMPONENTS = 256
RIDGE = 0.1
SCORES = ("knn", "white", "ridge")


def tats(*words: object) -> dict[str, Any]:
    """Run a command line on one thread and return its JSON object."""
    command = [sys.executable, "-m", "tatscli", *map(str, words), "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def prepare(data: Path, out: Path) -> None:
    """Make the stores: one of each task, and one of both train parts without labels."""
    videos = out / "videos"
    for task in TASKS:
        folder = videos / task
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        for name in ("train.csv", "val.csv", "labels.txt"):
            (folder / name).write_text((data / f"grid_{task}" / name).read_text())
        for source in sorted((data / f"grid_{task}" / "clips").iterdir()):
            cut(source, folder / "clips" / source.name, MOUTH)
    lines = [
        f"{task}/{line.split()[0]}\n"
        for task in TASKS
        for line in (videos / task / "train.csv").read_text().splitlines()
    ]
    (videos / "train.csv").write_text("".join(lines))
    for name, splits in (("", ("train",)), *((task, ("train", "val")) for task in TASKS)):
        lists = [
            word for split in splits for word in ("--annotations", videos / name / f"{split}.csv")
        ]
        store = out / "stores" / (name or "both")
        tats("prepare", videos / name, *lists, "--motion-cell", 8, "--workers", 1, "--out", store)


def features(checkpoint: Path | None, run: Path, store: Path, split: str) -> ViewScores:
    """Return all tokens of the middle window of each video, joined; None is the untrained start."""
    loaded = open_checkpoint(checkpoint or run)
    torch.manual_seed(loaded.recipe.run.seed)
    encoder = build_encoder(loaded.recipe.model, loaded.recipe.grid)
    if checkpoint is not None:
        load_encoder(encoder, loaded.checkpoint)
    opened = Store.open(store)
    data = loaded.recipe.data
    views = EvalViews(opened, opened.part(split), data, sampling=data.sampling)
    reporter = Reporter(stdout=io.StringIO(), stderr=io.StringIO(), quiet=True)
    with session(loaded.recipe.run, reporter) as here:
        model = PooledFeatures(encoder, encoder.tokens)
        return score_views(model, views, loaded.recipe, here, output=lambda tokens: tokens)


def neighbours(stored: ViewScores, asked: ViewScores, stored_QD: Tensor, asked_RD: Tensor) -> float:
    """Return the share of videos that their 20 nearest neighbours name rightly."""
    votes = knn_scores(
        asked_RD,
        stored_QD,
        stored.label_V,
        query_row_R=-1 - asked.row_V,  # no video is in both parts
        stored_row_Q=stored.row_V,
        classes=int(stored.label_V.max()) + 1,
        neighbours=20,
        temperature=0.07,
    )
    return float((votes.argmax(1) == asked.label_V).float().mean())


def ridge(label_Q: Tensor, label_R: Tensor, stored_QK: Tensor, asked_RK: Tensor) -> float:
    """Return the accuracy of least squares on one-hot labels with a little shrinkage."""
    target_QL = F.one_hot(label_Q).float()
    middle_L = target_QL.mean(0)
    gram_KK = stored_QK.T @ stored_QK / len(stored_QK) + RIDGE * torch.eye(stored_QK.shape[1])
    weight_KL = torch.linalg.solve(gram_KK, stored_QK.T @ (target_QL - middle_L) / len(stored_QK))
    guess_R = (asked_RK @ weight_KL + middle_L).argmax(1)
    return float((guess_R == label_R).float().mean())


def probe(checkpoint: Path | None, run: Path, stores: Path, width: int = 128) -> dict[str, float]:
    """Score frozen features on both tasks."""
    found = {}
    for task in TASKS:
        stored, asked = (
            features(checkpoint, run, stores / task, split) for split in ("train", "val")
        )
        pooled = [part.score_VL.unflatten(1, (-1, width)).mean(1) for part in (stored, asked)]
        white = whiten(stored.score_VL, asked.score_VL, COMPONENTS)
        found[f"{task} knn"] = neighbours(stored, asked, *pooled)
        found[f"{task} white"] = neighbours(stored, asked, *white)
        found[f"{task} ridge"] = ridge(stored.label_V, asked.label_V, *white)
    return found


def pretrained(out: Path, mask: str, seed: int) -> dict[str, Any]:
    """Pretrain one cell and score its checkpoints, unless that was done before."""
    torch.set_num_threads(1)
    run = folder(out, mask, seed)
    result = Path(f"{run}.json")
    if result.exists():
        return json.loads(result.read_text())
    stores = out / "stores"
    trained = tats(
        *("pretrain", "demo", "--store", stores / "both", "--out", run, "--overwrite"),
        *("mask={" + MASKS[mask] + "}", f"run.seed={seed}", *RECIPE),
    )
    steps = sorted((run / "checkpoints").glob("step-*"))
    curve = [probe(step, run, stores) for step in (None, *steps)]
    found = {"mask": mask, "seed": seed, "commit": commit(), "trained": trained, "curve": curve}
    result.write_text(json.dumps(found, indent=1))
    return found


def folded(out: Path, mask: str, seed: int) -> dict[str, Any]:
    """Score the checkpoints of one cell by folds, unless that was done before."""
    torch.set_num_threads(1)
    run = folder(out, mask, seed)
    result = Path(f"{run}-folds.json")
    if result.exists():
        return json.loads(result.read_text())
    steps = sorted((run / "checkpoints").glob("step-*"))
    curve = []
    for step in (None, *steps):
        scores = {}
        for task in TASKS:
            parts = [features(step, run, out / "stores" / task, part) for part in ("train", "val")]
            scores[task] = by_folds(*parts)
        curve.append(scores)
    found = {"mask": mask, "seed": seed, "commit": commit(), "curve": curve}
    result.write_text(json.dumps(found, indent=1))
    return found


def by_folds(*parts: ViewScores) -> float:
    """Return the accuracy of ridge classifiers, each trained on four fifths and asked the rest."""
    label_V = torch.cat([part.label_V for part in parts])
    token_VD = torch.cat([part.score_VL for part in parts])
    order_V = torch.randperm(len(label_V), generator=torch.Generator().manual_seed(0))
    fold_V = order_V % 5
    right = 0.0
    for fold in range(5):
        rest, held = fold_V != fold, fold_V == fold
        white = whiten(token_VD[rest], token_VD[held], COMPONENTS)
        right += ridge(label_V[rest], label_V[held], *white) * int(held.sum())
    return right / len(label_V)


def finetuned(out: Path, mask: str, seed: int) -> dict[str, Any]:
    """Fine-tune one cell on both tasks, unless that was done before; `scratch` is no mask."""
    run = folder(out, mask, seed)
    result = Path(f"{run}-finetuned.json")
    if result.exists():
        return json.loads(result.read_text())
    found: dict[str, Any] = {"mask": mask, "seed": seed, "commit": commit()}
    start = ("demo", "--scratch", *RECIPE) if mask == SCRATCH else (run,)
    for task in TASKS:
        tuned, store = Path(f"{run}-{task}"), out / "stores" / task
        words = ("--store", store, "--out", tuned, "--overwrite", f"run.seed={seed}", *FINETUNE)
        tats("finetune", *start, *words)
        found[task] = tats("evaluate", tuned, "--store", store)["top1"]
    result.write_text(json.dumps(found, indent=1))
    return found


def folder(out: Path, mask: str, seed: int) -> Path:
    """Return where a cell is trained."""
    return out / f"{mask.replace(' ', '-')}-{seed}"


def commit() -> str:
    """Return the commit of the code."""
    words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def crossing(curve: Sequence[float], level: float) -> str:
    """Return the pass at which a curve over checkpoints first rises to a level, on a straight line
    between two of them; `-` if it never does. The untrained start is none of its merits."""
    if curve[1] >= level:
        return f"up to {EVERY}"
    for place, (before, after) in enumerate(pairwise(curve[1:]), 1):
        if after >= level:
            return f"{EVERY * (place + (level - before) / (after - before)):.1f}"
    return "-"


def spread(values: Sequence[float]) -> str:
    """Return a mean with its range."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def average(curve: Sequence[dict[str, float]], names: Sequence[str]) -> list[float]:
    """Return the mean of some scores at every checkpoint."""
    return [statistics.mean(scores[name] for name in names) for scores in curve]


def print_curves(cells: dict[str, list[list[float]]]) -> None:
    """Print means over seeds at every checkpoint, the last with its range, and the crossings."""
    means = {
        m: [statistics.mean(column) for column in zip(*c, strict=True)] for m, c in cells.items()
    }
    passes = [EVERY * place for place in range(len(next(iter(means.values()))))]
    print(f"\n| mask | {' | '.join(f'pass {p}' for p in passes)} | reaches `tube` 0.75 | 0.9 |")
    print(f"|---{'|---' * (len(passes) + 2)}|")
    for mask, mean in means.items():
        levels = [means[tube][-1] for tube in ("tube 0.75", "tube 0.9") if tube in means]
        ends = [crossing(mean, level) for level in levels]
        row = [f"{value:.3f}" for value in mean[:-1]]
        row += [spread([curve[-1] for curve in cells[mask]]), *ends]
        print(f"| `{mask}` | {' | '.join(row)} |")


def report(out: Path) -> None:
    """Print the tables of what is done."""
    done = [json.loads(file.read_text()) for file in sorted(out.glob("*-[0-9].json"))]
    tuned = [json.loads(file.read_text()) for file in sorted(out.glob("*-finetuned.json"))]
    cells = {mask: [row["curve"] for row in done if row["mask"] == mask] for mask in MASKS}
    cells = {mask: curves for mask, curves in cells.items() if curves}
    columns = [*product(TASKS, SCORES)]

    names = [f"{task} {score}" for task, score in columns]
    print(f"| mask | seeds | motion hidden | {' | '.join(names)} |")
    print(f"|---{'|---' * (len(columns) + 2)}|")
    starts = [curves[0] for rows in cells.values() for curves in rows]
    for mask, ends in (("untrained", starts), *((m, [c[-1] for c in r]) for m, r in cells.items())):
        scores = [spread([end[f"{task} {score}"] for end in ends]) for task, score in columns]
        moves = [row["trained"]["motion_hidden"] for row in done if row["mask"] == mask]
        hidden = f"{statistics.mean(moves):.2f}" if moves else ""
        print(f"| `{mask}` | {len(moves) or len(SEEDS)} | {hidden} | {' | '.join(scores)} |")

    probes = [f"{task} ridge" for task in TASKS]
    print_curves({m: [average(c, probes) for c in curves] for m, curves in cells.items()})
    folds = [json.loads(file.read_text()) for file in sorted(out.glob("*-folds.json"))]
    if folds:
        rows = {m: [row["curve"] for row in folds if row["mask"] == m] for m in MASKS}
        print_curves(
            {m: [average(c, TASKS) for c in curves] for m, curves in rows.items() if curves}
        )

    print(f"\n| mask | seeds | {' | '.join(f'{task} fine-tuned' for task in TASKS)} |")
    print("|---|---|---|---|")
    for mask in (SCRATCH, *MASKS):
        rows = [row for row in tuned if row["mask"] == mask]
        if rows:
            scores = [spread([row[task] for row in rows]) for task in TASKS]
            print(f"| `{mask}` | {len(rows)} | {' | '.join(scores)} |")


def main() -> None:
    """Run the cells and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--masks", nargs="*", choices=MASKS, default=list(MASKS))
    parser.add_argument("--step", choices=("pretrain", "folds", "finetune", "report"))
    options = parser.parse_args()
    out: Path = options.out
    if not (out / "stores" / TASKS[-1]).exists():
        prepare(options.data, out)
    with ProcessPoolExecutor(options.jobs) as pool:
        stages = (("pretrain", pretrained), ("folds", folded), ("finetune", finetuned))
        for step, stage in stages:
            more = [SCRATCH] if step == "finetune" else []
            if options.step in (None, step):
                cells = [(out, mask, seed) for seed in SEEDS for mask in (*more, *options.masks)]
                list(pool.map(stage, *zip(*cells, strict=True)))
    report(out)


if __name__ == "__main__":
    main()
