"""A small study of masks on the demo's rendered movements: what is shown, and what it is worth.

    python tests/studies/movements.py OUT --jobs 2

Every mask is trained with every ratio and seed for as many passes with the recipe `demo`,
then scored by nearest neighbours on frozen features and by the same short fine-tuning. What is done
already is not done again, so a study that was stopped continues. Prints the table of
`docs/results.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.demo.clips import SetSize, write_set

MASKS = {
    "random": "kind: random, ratio: {ratio}",
    "tube": "kind: tube, ratio: {ratio}",
    "adamae": "kind: adamae, ratio: {ratio}, width: 64, heads: 4, base_lr: 1.0e-2",
    "tats": "kind: tats, ratio: {ratio}, width: 64, heads: 4, base_lr: 1.0e-2, warmup: 0.1",
}
RATIOS = (0.75, 0.9, 0.95)
SEEDS = (0, 1, 2)


def tats(*words: object) -> dict[str, Any]:
    """Run a command line and return its JSON object."""
    command = [sys.executable, "-m", "tatscli", *map(str, words), "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def one(out: Path, mask: str, ratio: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train and score one cell, unless that was done before."""
    run = out / f"{mask}-{ratio}-{seed}"
    result = out / f"{run.name}.json"
    if result.exists():
        return json.loads(result.read_text())
    store = out / "store"
    section = "mask={" + MASKS[mask].format(ratio=ratio) + "}"
    trained = tats(
        *("pretrain", "demo", "--store", store, "--out", run, "--overwrite"),
        *(section, f"optim.epochs={epochs}", f"run.seed={seed}"),
    )
    neighbours = tats("evaluate", run, "--protocol", "knn", "--store", store)
    finetuned = Path(f"{run}-finetune")
    tats("finetune", run, "--store", store, "--out", finetuned, "--overwrite")
    scored = tats("evaluate", finetuned, "--store", store)
    found = {
        "mask": mask,
        "ratio": ratio,
        "seed": seed,
        "motion_share": trained["motion_share"],
        "entropy": trained.get("entropy"),
        "loss": trained["loss"],
        "knn": neighbours["top1"],
        "finetuned": scored["top1"],
    }
    result.write_text(json.dumps(found))
    return found


def main() -> None:
    """Run the cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    out: Path = options.out
    if not (out / "store").exists():
        write_set(out / "videos", SetSize(), seed=0, reporter=Reporter())
        tats("prepare", out / "videos", "--out", out / "store")
    cells = list(product(SEEDS, RATIOS, MASKS))
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(
            pool.map(lambda cell: one(out, cell[2], cell[1], cell[0], options.epochs), cells)
        )
    print("| ratio | mask | motion share | kNN top-1 | fine-tuned top-1 |\n|---|---|---|---|---|")
    for ratio, mask in product(RATIOS, MASKS):
        rows = [row for row in found if (row["ratio"], row["mask"]) == (ratio, mask)]
        columns = []
        for key in ("motion_share", "knn", "finetuned"):
            values = [row[key] for row in rows]
            span = f"{min(values):.3f} to {max(values):.3f}"
            columns.append(f"{statistics.mean(values):.3f} ({span})")
        print(f"| {ratio} | `{mask}` | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
