"""Arms of a study, each pretrained, probed, fine-tuned and scored in this process.

What is done is kept in OUT/<arm>-<seed>.json, and in the middle of a training its checkpoint, so
that a study that was stopped continues.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.engine.checkpoint import find_checkpoint
from tatscli.errors import CheckpointError
from tatscli.recipe.load import load_recipe
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain

SCORES = ("probe", "finetuned")


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm sees and does.

    Attributes:
        recipe: Changes to the study's recipe.
        scored: Store of the videos that are probed and scored, if not the one trained on.
        pretrained: False of a yardstick: the encoder is probed as training begins, and fine-tuned
            from there.
    """

    recipe: tuple[str, ...]
    scored: Path | None = None
    pretrained: bool = True


def prepare(videos: Path, store: Path, *lists: Path | str) -> None:
    """Make a store, unless it is there; lists name the videos of a part, which is their stem."""
    if (store / "dataset.json").is_file():
        return
    words = [word for file in lists for word in ("--annotations", file)]
    words += ["--motion-cell", 8, "--quality", 2, "--workers", 1, "--out", store, "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "tatscli", "prepare", *map(str, (videos, *words))],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run_arm(
    name: str, arm: Arm, seed: int, *, base: str, common: Sequence[str], store: Path, out: Path
) -> dict[str, Any]:
    """Train and score an arm with one seed, unless that was done before."""
    cell = out / f"{name.replace(' ', '-')}-{seed}"
    result = cell.with_suffix(".json")
    if result.exists():
        return json.loads(result.read_text())
    words = [*common, *arm.recipe, f"data.store={store}", f"run.seed={seed}"]
    scored = [f"data.store={arm.scored or store}"]
    loaded, tuned, say = load_recipe(base, words), Path(f"{cell}-finetuned"), silent()

    def pretrained() -> dict[str, Any]:
        pretrain(loaded, reporter=say, out=cell, **go_on(cell))
        rows = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
        return {"loss": rows[-1]["loss"], "steps": rows[-1]["step"]}

    def probed() -> dict[str, Any]:
        found = evaluate(
            cell if arm.pretrained else base,
            reporter=say,
            protocol="attentive",
            overrides=scored if arm.pretrained else [*words, *scored],
            untrained=not arm.pretrained,
            out=Path(f"{cell}-probe.json"),
            overwrite=True,
        )
        return {"probe": found["top1"], "probed with": found["probe"]["rate"]}

    def finetuned() -> dict[str, Any]:
        init = cell if arm.pretrained else None
        finetune(loaded, reporter=say, init=init, out=tuned, **go_on(tuned))
        rows = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()]
        score = evaluate(
            tuned, reporter=say, overrides=scored, out=Path(f"{cell}-score.json"), overwrite=True
        )
        return {
            "fine-tuning loss": [row["loss"] for row in rows if "loss" in row][-1],
            "finetuned": score["top1"],
            "videos": score["videos"],
        }

    parts = {"pretrain": pretrained} if arm.pretrained else {}
    parts |= {"probe": probed, "finetune": finetuned}
    half = Path(f"{cell}-half.json")
    found = {"arm": name, "seed": seed, "commit": commit(), "seconds": {}}
    if half.exists():
        found = json.loads(half.read_text())
    for part, work in parts.items():
        if part not in found["seconds"]:
            began = time.process_time()
            found |= work()
            # Of a part that was stopped and continued, what came after.
            found["seconds"][part] = round(time.process_time() - began, 1)
            half.write_text(json.dumps(found))
    result.write_text(json.dumps(found, indent=1))
    half.unlink()
    for folder in (cell, tuned):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def silent() -> Reporter:
    """Return a reporter that nobody hears."""
    return Reporter(stdout=io.StringIO(), stderr=io.StringIO(), quiet=True)


def go_on(run: Path) -> dict[str, bool]:
    """Return how to start a training whose run folder may be there already."""
    try:
        find_checkpoint(run)
    except CheckpointError:
        return {"overwrite": True}
    return {"resume": True}


def keep(figures: Path, facts: dict[str, Any], found: Sequence[dict[str, Any]]) -> None:
    """Add results to a file of raw figures, in place of earlier ones of the same arm and seed."""
    old = json.loads(figures.read_text())["cells"] if figures.is_file() else []
    cells = {(cell["arm"], cell["seed"]): cell for cell in (*old, *found)}
    rows = [cells[key] for key in sorted(cells)]
    figures.parent.mkdir(parents=True, exist_ok=True)
    figures.write_text(json.dumps({**facts, "cells": rows}, indent=1) + "\n")


def table(figures: Path, arms: Sequence[str]) -> str:
    """Return the means over seeds (lowest to highest) of the arms that have any, as Markdown."""
    cells = json.loads(figures.read_text())["cells"]
    lines = [
        "| arm | seeds | attentive probe | fine-tuned | s pretraining | s fine-tuning |",
        "|---|---|---|---|---|---|",
    ]
    for arm in arms:
        rows = [cell for cell in cells if cell["arm"] == arm]
        if not rows:
            continue
        scores = [spread([row[score] for row in rows]) for score in SCORES]
        times = [
            f"{statistics.mean(row['seconds'][part] for row in rows):.0f}"
            if part in rows[0]["seconds"]
            else ""
            for part in ("pretrain", "finetune")
        ]
        lines.append(f"| `{arm}` | {len(rows)} | {' | '.join((*scores, *times))} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return mean, lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def commit() -> str:
    """Return the commit of the code."""
    words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()
