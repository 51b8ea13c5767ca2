"""`tats report`: one page about a run, for people who were not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tatscli.console import Reporter
from tatscli.engine.checkpoint import Checkpoint
from tatscli.engine.history import read_metrics, read_object
from tatscli.engine.session import Session, session
from tatscli.errors import DataError, TatsError, UsageError
from tatscli.files import refuse_existing, refuse_unwritable, write_safely
from tatscli.nn.load import open_checkpoint
from tatscli.recipe.load import override_recipe
from tatscli.recipe.schema import Recipe
from tatscli.report.page import Page, Section, render
from tatscli.report.sections import (
    Result,
    curves,
    environment,
    evaluations,
    headline,
    recipe_changes,
    subtitle,
    training_pictures,
)
from tatscli.store.reader import Store
from tatscli.tasks.labels import divided
from tatscli.tasks.report_clips import example_galleries, mask_gallery, neighbour_galleries
from tatscli.tasks.results import read_result, results_in
from tatscli.weights.paths import is_foreign


def report(
    run: Path,
    *,
    reporter: Reporter,
    out: Path | None = None,
    result: Path | None = None,
    overrides: Sequence[str] = (),
    clips: int = 6,
    prefer: str = "last",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a page about a run that needs no other file.

    Args:
        run: A run folder.
        reporter: Speaks to the user.
        out: The page; by default `<run>/report.html`, which is replaced.
        result: Which evaluation to show in detail; by default the newest in `<run>/results` that
            has classes and is of the run's own weights.
        overrides: Recipe keys to change, such as `data.store` where the store has moved.
        clips: Videos in each gallery; 0 shows none, and reads no store.
        prefer: Which checkpoint looks at the clips, `last` or `best`.
        overwrite: Replace `out`.

    Returns:
        `run`, `report`, `bytes`, `sections` and `left_out`: what could not be shown, and why.

    Raises:
        UsageError: If `out` exists, `run` is no run folder, or what draws is not installed.
        CheckpointError: If there is no run.
        DataError: If `result` cannot be read.
        RecipeError: If an override is wrong.
    """
    target = out or run / "report.html"
    if target.is_dir():
        raise UsageError(f"`{target}` is a folder", hint="name a file, such as `report.html`")
    if out is not None:
        refuse_existing(out, overwrite=overwrite)
    if run.is_dir():
        refuse_unwritable(target)
    if not (run / "checkpoints").is_dir() and run.is_dir() and (run / "meta.json").is_file():
        raise UsageError(
            f"`{run}` is a checkpoint, and a report is about a whole run",
            hint="give the run folder that holds its `checkpoints`",
        )
    if is_foreign(run):
        raise UsageError(
            f"`{run}` holds weights that another program wrote, and a report is about a run",
            hint=f"`tats convert {run} --to tats --out RUN` makes a run of them",
        )
    opened = open_checkpoint(run, prefer=prefer)
    recipe = override_recipe(opened.recipe, overrides, origin=opened.checkpoint.path)
    found = [Result(*one) for one in results_in(run)]  # the newest first
    shown = _chosen(found, result)
    left_out: list[str] = []
    described = _described(run, left_out)
    lines = read_metrics(run / "metrics.jsonl")
    with session(recipe.run, reporter, joins=False) as here:
        sections = [
            curves(lines),
            *training_pictures(run),
            *evaluations(found, shown),
            *_clips(opened.checkpoint, recipe, shown, clips, here, left_out),
            recipe_changes(opened, described),
            environment(described, opened),
        ]
    page = Page(
        title=run.resolve().name,
        subtitle=subtitle(opened, described),
        facts=headline(opened, lines, shown),
        sections=sections,
    )
    for words in left_out:
        reporter.warn(words)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_safely(target, render(page))
    return {
        "run": str(run),
        "report": str(target),
        "bytes": target.stat().st_size,
        "sections": [one.title for one in page.sections],
        "left_out": left_out,
    }


def _described(run: Path, left_out: list[str]) -> dict[str, Any]:
    """Read `run.json`; without it a report has no environment."""
    try:
        return read_object(run / "run.json") or {}
    except DataError as error:
        left_out.append(f"no environment: {error.message}")
        return {}


def _chosen(found: Sequence[Result], wanted: Path | None) -> Result | None:
    """Return the evaluation to show in detail.

    Raises:
        UsageError: If the one asked for is no evaluation of classes.
    """
    if wanted is not None:
        shown = Result(wanted, read_result(wanted))
        if "confusion" not in shown.facts:
            raise UsageError(
                f"`{wanted}` scores no classes",
                hint="name a result of a classifier, of neighbours or of a probe",
            )
        return shown
    return next(
        (one for one in found if "confusion" in one.facts and not one.facts.get("untrained")), None
    )


def _clips(
    checkpoint: Checkpoint,
    recipe: Recipe,
    shown: Result | None,
    count: int,
    here: Session,
    left_out: list[str],
) -> Iterator[Section]:
    """Show masks, videos with their predictions, and neighbours, each where it can be."""
    if count == 0:
        return
    try:
        store = divided(recipe, Store.open(recipe.data.store))
    except DataError as error:
        left_out.append(f"no clips: {error.message}")
        yield Section("Clips", note=f"Not shown: {error.message}.")
        return
    asked: list[tuple[str, str, Any]] = []
    if checkpoint.kind == "pretrained":
        note = "What the mask hides of a video, and what the model makes of it."
        asked.append(("Masks", note, lambda: mask_gallery(checkpoint, recipe, store)))
    if shown is not None:
        note = (
            "Videos by the probability of their true class. Merged over "
            f"{shown.facts['segments']} x {shown.facts['crops']} views."
        )
        asked.append(
            ("Best and worst videos", note, lambda: example_galleries(shown, recipe, store, count))
        )
    if checkpoint.kind != "tokenizer":
        note = (
            "The training videos with the most similar features: cosine similarity of the mean "
            "token features of centre views, after subtracting their mean over all videos."
        )
        asked.append(
            (
                "Nearest neighbours",
                note,
                lambda: neighbour_galleries(checkpoint, recipe, store, count, here),
            )
        )
    for title, note, make in asked:
        try:
            yield Section(title, note=note, galleries=make())
        except TatsError as error:
            left_out.append(f"no {title.lower()}: {error.message}")
            yield Section(title, note=f"Not shown: {error.message}.")
