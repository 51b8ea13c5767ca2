"""Listing run folders: what each is, how far it got, how good it is, how two differ.

Only JSON is read, so that many runs are listed fast; checkpoints are not opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tatscli.console import Reporter
from tatscli.engine.folders import kept_in, pointed_at
from tatscli.engine.history import read_metrics
from tatscli.errors import CheckpointError, DataError
from tatscli.jsonfiles import read_object, reason_of
from tatscli.lock import LOCK, is_held
from tatscli.recipe.keys import differences
from tatscli.recipe.load import load_recipe
from tatscli.tasks.results import results_in

METRICS = {"top1": True, "top5": True, "mean_class": True, "ece": False, "nll": False, "val": True}
"""What runs are ranked by, and whether higher is better; `val` is the best validation score."""

ACTIVE = 600.0  # seconds since the last write in which a training that holds no lock may be running
DEPTH = 3  # folders below the one that is looked through
TAIL = 1 << 16  # bytes at the end of the metrics that are read

State = Literal["finished", "running", "active", "stopped", "converted", "results", "damaged"]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of a run without opening its weights.

    Attributes:
        name: Path below the folder that is listed.
        path: Its folder.
        state: `finished`: all steps are done; `running`: being trained now; `active`: perhaps being
            trained: unfinished, written to within the last ten minutes, on a file system without
            locks; `stopped`; `converted`: written by `tats convert`; `results`: the folder has
            only results; `damaged`.
        kind: `pretrained`, `finetuned` or `tokenizer`; None before its first checkpoint.
        recipe: Name of the recipe.
        step: Of the last checkpoint.
        total: Steps of the whole schedule.
        loss: The last loss that was logged.
        clips_per_second: The last rate that was logged.
        mfu: The last model FLOPs utilisation that was logged, where the device's peak is known.
        best: Best score on `finetune.val_split`.
        started: When it was first started.
        age: Seconds since the last write.
        bytes: Size on disk; linked files are counted once.
        results: Number of results.
        problem: What is damaged.
    """

    name: str
    path: str
    state: State
    kind: str | None = None
    recipe: str | None = None
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    clips_per_second: float | None = None
    mfu: float | None = None
    best: float | None = None
    started: str | None = None
    age: float | None = None
    bytes: int = 0
    results: int = 0
    problem: str | None = None


def list_runs(folder: Path) -> list[RunFacts]:
    """Describe the runs in a folder, most recently written first.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(
            f"there is no folder `{folder}`",
            hint="trainings write to `runs` in the folder where they are started",
        )
    found = [describe(path, folder) for path in find_runs(folder)]
    return sorted(found, key=lambda one: (one.age is None, one.age, one.name))


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the run folders at or below `folder`; runs inside runs are not looked for."""
    if _is_run(folder):
        yield folder
    elif depth:
        try:
            below = sorted(path for path in folder.iterdir() if path.is_dir())
        except OSError:  # not readable by us
            return
        for path in below:
            if not path.name.startswith("."):
                yield from find_runs(path, depth - 1)


def describe(path: Path, base: Path) -> RunFacts:
    """Describe a run; damage is reported in `problem`."""
    problems: list[str] = []
    name = path.resolve().name if path == base else str(path.relative_to(base))
    about = _object(path / "run.json", problems, _About)
    root = path / "checkpoints"
    last = pointed_at(root, "last") or next(iter(kept_in(root)), root / "last")
    meta = _object(last / "meta.json", problems, _Meta)
    if (root / "last").is_symlink() and not meta and not problems:
        problems.append("`checkpoints/last` is a broken link")
    if meta and not (last / "model.safetensors").is_file():
        problems.append("there is no `model.safetensors` in `checkpoints/last`")
    only_results = not about and not (path / "recipe.yaml").exists() and not meta
    if not only_results and not problems:
        problems += [
            f"there is no `{file}`"
            for file in ("run.json", "recipe.yaml")
            if not (path / file).is_file()
        ]
    written = [path / "run.json", path / "metrics.jsonl", path / "checkpoints", path / "results"]
    times = [file.stat().st_mtime for file in written if file.exists()]
    age = max(0.0, time.time() - max(times)) if times else None
    step, total = meta.get("step", 0), (about.get("derived") or {}).get("total_steps")
    earlier = about.get("earlier") or [about]
    held = is_held(path / LOCK)
    state: State = "stopped"
    if held:
        state = "running"
    elif problems and not (only_results and (path / "results").is_dir()):
        state = "damaged"
    elif only_results:
        state = "results"
    elif "source_sha256" in about:
        state = "converted"
    elif total is not None and step >= total:
        state = "finished"
    elif held is None and age is not None and age < ACTIVE:
        state = "active"
    return RunFacts(
        name=name,
        path=str(path),
        state=state,
        kind=meta.get("kind"),
        recipe=about.get("recipe") or meta.get("name"),
        step=None if state == "results" else step,
        total=total,
        **_last_logged(path / "metrics.jsonl", ("loss", "clips_per_second", "mfu")),
        best=meta.get("best_score"),
        started=earlier[0].get("started"),
        age=age,
        bytes=_size(path),
        results=len(list((path / "results").glob("*.json"))),
        problem="; ".join(problems) or None,
    )


def best_runs(
    folder: Path,
    metric: str,
    *,
    reporter: Reporter,
    split: str | None = None,
    protocol: str | None = None,
) -> dict[str, Any]:
    """Rank runs by their results, or by their best validation score.

    Results of untrained encoders are left out.

    Args:
        folder: The folder with the runs.
        metric: One of `METRICS`.
        reporter: Warns where splits, protocols or stores differ.
        split: Use only results of this split.
        protocol: Use only results of this protocol.

    Returns:
        `metric`; `best`, the first of `ranked`; and `ranked`: `run`, `result` (its file; None for
        `val`), `value`, `interval` where there is one, `protocol`, `split`, `segments`, `crops`.

    Raises:
        DataError: If no run has the metric.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder `{folder}`")
    found: list[dict[str, Any]] = []
    stores: set[str] = set()
    for path in find_runs(folder):
        if metric == "val":
            best = describe(path, folder).best
            if best is not None:
                found.append({"run": str(path), "result": None, "value": best})
            continue
        for file, result in results_in(path):
            if result.get("untrained"):
                continue
            fits = split in (None, result["split"]) and protocol in (None, result["protocol"])
            if fits and result.get(metric) is not None:
                stores.add(str(result.get("store_fingerprint")))
                about = {key: result[key] for key in ("protocol", "split", "segments", "crops")}
                value, between = result[metric], result.get(f"{metric}_interval")
                one = {"run": str(path), "result": str(file), "value": value}
                found.append({**one, "interval": between, **about})
    if not found:
        hint = (
            "it is measured while fine-tuning with `finetune.val_split`"
            if metric == "val"
            else "`tats evaluate RUN` measures it"
        )
        raise DataError(f"no run in `{folder}` has `{metric}`", hint=hint)
    for key in ("protocol", "split"):
        values = sorted({str(one[key]) for one in found if key in one})
        if len(values) > 1:
            reporter.warn(f"the ranking mixes results of several {key}s: {', '.join(values)}")
    if len(stores) > 1:
        reporter.warn(f"the ranking mixes results of {len(stores)} different stores")
    found.sort(key=lambda one: one["value"], reverse=METRICS[metric])
    return {"metric": metric, "best": found[0], "ranked": found}


def compare_runs(first: Path, second: Path) -> dict[str, Any]:
    """Return the recipe keys in which two runs differ, and their numbers side by side.

    Returns:
        `runs`, both folders; `recipe`: `key` and the two `values` wherever they differ; `metrics`:
        `name` and the two `values`, None where a run does not have it.

    Raises:
        TatsError: If one is not a run, or its recipe cannot be read.
    """
    recipes, numbers = [], []
    for path in (first, second):
        if not (path / "recipe.yaml").is_file():
            raise CheckpointError(
                f"`{path}` is not a run folder: it has no `recipe.yaml`",
                hint="`tats runs` lists the runs",
            )
        recipe = load_recipe(path / "recipe.yaml", stored=True).recipe
        recipes.append(recipe.model_dump(mode="json"))
        numbers.append(_numbers(path))
    names = sorted(numbers[0].keys() | numbers[1].keys())
    return {
        "runs": [str(first), str(second)],
        "recipe": [
            {"key": key, "values": [one, two]}
            for key, one, two in differences(recipes[0], recipes[1])
        ],
        "metrics": [{"name": name, "values": [one.get(name) for one in numbers]} for name in names],
    }


def _numbers(path: Path) -> dict[str, float]:
    facts = describe(path, path)
    keys = ("step", "total", "loss", "clips_per_second", "mfu", "best")
    named: dict[str, Any] = {key: getattr(facts, key) for key in keys}
    for file, result in results_in(path):
        for key in ("top1", "top5", "mean_class", "ece", "nll", "psnr", "ssim"):
            named[f"{file.stem} {key}"] = result.get(key)
    return {name: value for name, value in named.items() if value is not None}


def _is_run(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("recipe.yaml", "run.json")):
        return True
    return (folder / "checkpoints").is_dir() or any((folder / "results").glob("*.json"))


class _Derived(BaseModel):
    total_steps: int | None = None


class _About(BaseModel):
    """What the keys of a `run.json` must be where they are there; there are others."""

    recipe: str | None = None
    started: str | None = None
    derived: _Derived | None = None
    earlier: list[_About] = []


class _Meta(BaseModel):
    """What the keys of a `meta.json` must be where they are there; there are others."""

    kind: str | None = None
    step: int = 0
    name: str | None = None
    best_score: float | None = None


def _object(path: Path, problems: list[str], form: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON object; a missing or damaged one is empty, and damage is noted."""
    try:
        found = read_object(path) or {}
        form.model_validate(found, strict=True)
    except DataError as error:
        problems.append(error.message)
        return {}
    except ValidationError as error:
        problems.append(f"`{path}` is damaged: {reason_of(error)}")
        return {}
    return found


def _last_logged(path: Path, names: Sequence[str]) -> dict[str, float | None]:
    """Return the last number of each name; one that is not finite is null in the log."""
    lines = read_metrics(path, tail=TAIL)
    found: dict[str, float | None] = dict.fromkeys(names)
    for line in lines:
        found |= {name: line[name] for name in names if type(line.get(name)) in (int, float)}
    return found


def _size(folder: Path) -> int:
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(root, name))
            except OSError:  # deleted just now, by a training that keeps few checkpoints
                continue
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())
