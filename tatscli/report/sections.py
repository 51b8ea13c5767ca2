"""Sections of a report that are made from the files of a run, without its videos.

Shapes: L classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tatscli import __version__
from tatscli.errors import RecipeError
from tatscli.nn.load import LoadedRun
from tatscli.recipe.keys import differences
from tatscli.recipe.load import load_recipe
from tatscli.recipe.shipped import shipped
from tatscli.recipe.text import dump_recipe
from tatscli.report.charts import draw_confusion, draw_curves, group_curves
from tatscli.report.page import Bar, Figure, Gallery, Section, Table
from tatscli.report.pictures import picture_file

_CONFUSED = 20  # pairs of classes in the table


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an evaluation.

    Attributes:
        path: The JSON file.
        facts: Its content.
    """

    path: Path
    facts: dict[str, Any]


def subtitle(opened: LoadedRun, described: dict[str, Any]) -> str:
    """Describe the run: its kind, how far it got and where it started."""
    checkpoint, kinds = opened.checkpoint, {"pretrained": "pretraining", "finetuned": "fine-tuning"}
    words = [kinds.get(checkpoint.kind, checkpoint.kind), f"checkpoint of step {checkpoint.step:,}"]
    if described.get("started"):
        words.append(f"started {described['started']}")
    if checkpoint.meta.get("init"):
        words.append(f"from {checkpoint.meta['init']}")
    return ", ".join(words)


def headline(
    opened: LoadedRun, lines: Sequence[dict[str, Any]], shown: Result | None
) -> list[tuple[str, str]]:
    """Return the most important numbers, by name: the last of the log, and of an evaluation."""
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    facts = [("optimiser steps", f"{opened.checkpoint.step:,}")]
    names = {
        "loss": "loss",
        "val_top1": "validation top-1",
        "watch/loss": "held-out loss",
        "watch/knn_top1": "held-out kNN top-1",
    }
    facts += [(words, f"{last[key]:.4g}") for key, words in names.items() if _number(last.get(key))]
    if shown is not None:
        for key, words in (("top1", "top-1"), ("top5", "top-5")):
            if _number(shown.facts.get(key)):
                facts.append((f"{words}, {shown.facts['split']}", f"{shown.facts[key]:.4f}"))
        for group, top1 in shown.facts.get("group_top1", {}).items():
            facts.append((f"{group} top-1, {shown.facts['split']}", f"{top1:.4f}"))
        facts.append(("videos scored", f"{shown.facts['videos']:,}"))
    return facts


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def curves(lines: Sequence[dict[str, Any]]) -> Section:
    """Draw every number of the log, the most important ones first."""
    if not lines:
        return Section("Curves", note="The run has no metrics.jsonl.")
    charts, constant = group_curves(lines)
    note = f"Steps {lines[0]['step']:,} to {lines[-1]['step']:,} of metrics.jsonl."
    if constant:
        same = ", ".join(f"{name} {value:g}" for name, value in constant.items())
        note += f" Constant: {same}."
    return Section(
        "Curves",
        note=note,
        charts=[draw_curves(chart) for chart in charts if chart.main],
        further=[draw_curves(chart) for chart in charts if not chart.main],
    )


def training_pictures(run: Path) -> Iterator[Section]:
    """Show the last picture that training wrote."""
    files = sorted((run / "pictures").glob("*.png"))
    if files:
        gallery = Gallery("", [Figure(picture_file(files[-1]), files[-1].stem)])
        yield Section("Pictures of the training", galleries=[gallery])


def evaluations(found: Sequence[Result], shown: Result | None) -> Iterator[Section]:
    """Show all evaluations as a table, and the chosen one by class."""
    if not found and shown is None:
        yield Section("Evaluations", note="None yet: `tats evaluate` makes them.")
        return
    columns = ["result", "protocol", "split", "videos", "views"]
    numbers = {
        "top1": "top-1",
        "top1_interval": "95 % interval",
        "top5": "top-5",
        "mean_class": "mean class",
        "ece": "calibration error",
    }
    rows = [
        [
            one.path.stem,
            *(str(one.facts.get(key) or "") for key in ("protocol", "split", "videos", "views")),
            *(_measured(one.facts.get(key)) for key in numbers),
        ]
        for one in found
    ]
    columns += numbers.values()
    yield Section("Evaluations", table=Table(columns, rows))
    if shown is None:
        return
    facts = shown.facts
    classes = sorted(facts["per_class"], key=lambda one: (one["top1"] is None, -(one["top1"] or 0)))
    bars = [
        Bar(
            one["class"],
            one["top1"] or 0.0,
            "no videos" if one["top1"] is None else f"{one['top1']:.3f} ({one['videos']} videos)",
        )
        for one in classes
    ]
    yield Section("Top-1 by class", note=f"From {shown.path.stem}.", bars=bars)
    confusion_LL = np.array(facts["confusion"])
    names = list(facts["class_names"])
    yield Section(
        "Confusion",
        note="Each row is a true class; a darker cell is a larger share of its videos.",
        charts=[draw_confusion(confusion_LL, names)],
        table=_confused(confusion_LL, names),
    )


def _measured(value: Any) -> str:
    """Format a number, or the ends of an interval; empty if there is none."""
    if isinstance(value, list):
        return " to ".join(map(_measured, value))
    return f"{value:.4f}" if _number(value) else ""


def _confused(confusion_LL: np.ndarray, names: Sequence[str]) -> Table | None:
    """List the pairs of classes that are confused most often."""
    wrong_LL = confusion_LL - np.diag(np.diag(confusion_LL))
    order = np.argsort(-wrong_LL, axis=None, kind="stable")[:_CONFUSED]
    pairs = [divmod(int(place), len(names)) for place in order if wrong_LL.flat[place]]
    if not pairs:
        return None
    rows = [
        [names[true], names[said], f"{wrong_LL[true, said]} of {confusion_LL[true].sum()}"]
        for true, said in pairs
    ]
    return Table(["true class", "predicted", "videos"], rows)


def recipe_changes(opened: LoadedRun, described: dict[str, Any]) -> Section:
    """Show the recipe, and how it differs from the shipped recipe of that name."""
    text = dump_recipe(opened.recipe)
    name = str(described.get("recipe") or opened.checkpoint.meta.get("name") or "")
    parent = next((one for one in shipped() if one.name.replace("/", "-") == name), None)
    if parent is None:
        return Section("Recipe", note="It is not a shipped recipe.", text=text, fold="whole recipe")
    try:
        before = load_recipe(parent.name).recipe.model_dump(mode="json")
    except RecipeError as error:
        return Section("Recipe", note=error.message, text=text, fold="whole recipe")
    after = opened.recipe.model_dump(mode="json")
    rows = [[key, _value(old), _value(new)] for key, old, new in differences(before, after)]
    note = f"{len(rows)} keys differ from `{parent.name}` as shipped with this version."
    table = Table(["key", parent.name, "this run"], rows) if rows else None
    return Section("Recipe", note=note, table=table, text=text, fold="whole recipe")


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def environment(described: dict[str, Any], opened: LoadedRun) -> Section:
    """Show the content of `run.json`, longer parts collapsed."""
    rows = [
        [key, " ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for key, value in described.items()
        if not isinstance(value, dict) and key != "earlier"
    ]
    rows += [
        ["sessions", str(1 + len(described.get("earlier") or []))],
        ["checkpoint", str(opened.checkpoint.path)],
        ["checkpoint sha256", opened.checkpoint.digest()],
        ["report by", f"tats {__version__}"],
    ]
    text = json.dumps(described, indent=1, ensure_ascii=False)
    return Section("Environment", table=Table(["", ""], rows), text=text, fold="run.json")
