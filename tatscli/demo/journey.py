"""All stages on a small rendered data set: render, prepare, pretrain, finetune, evaluate,
visualize.

Each stage calls the function behind the command of its name, and first prints the command line
that would do the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tatscli.console import Reporter
from tatscli.demo.clips import SetSize, write_set
from tatscli.demo.movements import MOVEMENTS
from tatscli.errors import UsageError
from tatscli.files import write_safely
from tatscli.machine import usable_cores
from tatscli.recipe.load import load_recipe
from tatscli.store.pool import run_in_order
from tatscli.store.prepare import prepare
from tatscli.store.schema import Settings
from tatscli.store.sources import find_sources
from tatscli.tasks.evaluate import evaluate
from tatscli.tasks.finetune import finetune
from tatscli.tasks.pretrain import pretrain
from tatscli.tasks.visualize_masks import Overrides, visualize_masks

RESULT = "demo.json"
"""Written first and last: marks a folder as a demo's, and holds the results."""

_Done = TypeVar("_Done")


class Stages:
    """Runs stages one after the other, prints what each does, and measures its time."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.seconds: dict[str, float] = {}

    def run(self, name: str, command: str, work: Callable[[], _Done]) -> _Done:
        """Do one stage; `command` is what a user would type for it."""
        self.reporter.info(f"\n{name}: {command}")
        began = time.perf_counter()
        done = work()
        self.seconds[name] = round(time.perf_counter() - began, 1)
        return done


def demo(
    out: Path,
    *,
    reporter: Reporter,
    overrides: Sequence[str] = (),
    size: SetSize | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measure on a rendered set of movements what pretraining gains.

    Args:
        out: Folder for everything: `videos`, `store`, `pretrained`, `pretrained-finetune`,
            `scratch`, `masks.gif`, `demo.json`.
        reporter: Prints messages and progress.
        overrides: Changes of the recipe `demo`; `run.seed` also seeds the set.
        size: How much is rendered.
        overwrite: Delete an earlier demo in `out` first.

    Returns:
        `chance`, `from_scratch` and `pretrained` (top-1 on the validation videos), `videos`, the
        paths `store`, `run` and `masks`, and `seconds` per stage.

    Raises:
        TatsError: If `out` is in use, or a stage fails.
    """
    size = size or SetSize()
    store, run = out / "store", out / "pretrained"
    loaded = load_recipe("demo", [*overrides, f"data.store={json.dumps(str(store))}"])
    seed = loaded.recipe.run.seed
    _claim(out, overwrite=overwrite)
    stages = Stages(reporter)

    def tune(name: str, init: Path | None) -> float:
        folder = out / name
        start = f"--init {init}" if init else "--scratch"
        stages.run(
            f"finetune ({name})",
            f"tats finetune demo --store {store} {start} --out {folder}",
            lambda: finetune(loaded, reporter=reporter, init=init, out=folder),
        )
        scores = stages.run(
            f"evaluate ({name})",
            f"tats evaluate {folder}",
            lambda: evaluate(folder, reporter=reporter),
        )
        return round(float(scores["top1"]), 4)

    stages.run(
        "render",
        f"{len(MOVEMENTS)} movements to {out / 'videos'}, one class each",
        lambda: write_set(out / "videos", size, seed=seed, reporter=reporter),
    )
    stages.run(
        "prepare",
        f"tats prepare {out / 'videos'} --out {store}",
        lambda: prepare(
            find_sources(out / "videos"),
            store,
            Settings(),
            run=partial(run_in_order, workers=usable_cores()),
            reporter=reporter,
        ),
    )
    stages.run(
        "pretrain",
        f"tats pretrain demo --store {store} --out {run}",
        lambda: pretrain(loaded, reporter=reporter, out=run),
    )
    scratch = tune("scratch", None)
    pretrained = tune("pretrained-finetune", run)
    clip = out / "videos" / "val" / "clockwise" / "000.mp4"
    masks = out / "masks.gif"
    stages.run(
        "visualize",
        f"tats visualize-masks {clip} --run {run} --fps 8 --windows 1 --out {masks}",
        lambda: visualize_masks(
            clip, reporter=reporter, run=run, overrides=Overrides(), out=masks, fps=8, windows=1
        ),
    )
    result = {
        "chance": round(1 / len(MOVEMENTS), 4),
        "from_scratch": scratch,
        "pretrained": pretrained,
        "classes": list(MOVEMENTS),
        "videos": {"train": size.train * len(MOVEMENTS), "val": size.val * len(MOVEMENTS)},
        "store": str(store),
        "run": str(run),
        "masks": str(masks),
        "seconds": stages.seconds,
        "total_seconds": round(sum(stages.seconds.values()), 1),
    }
    write_safely(out / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _claim(out: Path, *, overwrite: bool) -> None:
    """Make the demo's folder, and mark it as such.

    Raises:
        UsageError: If it holds anything, unless it is an earlier demo to be overwritten.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / RESULT).is_file():
            raise UsageError(
                f"`{out}` is not empty and holds no demo", hint="choose another folder with `--out`"
            )
        if not overwrite:
            raise UsageError(
                f"`{out}` holds a demo already",
                hint=f"its figures are in `{out / RESULT}`; `--overwrite` runs it again",
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_safely(out / RESULT, "{}\n")
