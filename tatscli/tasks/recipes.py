"""Find the recipe that a command line names: a file, a shipped name, or a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tatscli.errors import DataError, UsageError
from tatscli.jsonfiles import read_object
from tatscli.recipe.load import LoadedRecipe, load_recipe, with_store_found
from tatscli.recipe.text import dump_value
from tatscli.weights.paths import is_foreign

OWN = ("out", "max_steps", "watch")
"""Keys of `run` that new runs do not inherit: run folder, limit of a trial, held-out videos."""


def open_recipe(
    source: str, overrides: Sequence[str], *, resumes: bool = False
) -> tuple[LoadedRecipe, Path | None]:
    """Load the recipe that `source` means, and say which run folder it is, if it is one.

    A new run does not inherit `OWN` from the recipe of a run folder; a note says what was dropped.

    Args:
        source: A run folder, a file, or the name of a shipped recipe.
        overrides: Changes of the form `key.sub=value`.
        resumes: The run folder is continued, so its recipe is used as it is.

    Raises:
        RecipeError: With every problem found.
        UsageError: If these are weights of another program, which have no recipe.
    """
    folder = Path(source)
    if is_foreign(folder):
        raise UsageError(
            f"`{source}` holds weights from another program, without a recipe",
            hint=f"name a recipe and start from them: `tats finetune RECIPE --init {source}`",
        )
    path = folder / "recipe.yaml"
    if not path.is_file():
        return load_recipe(source, overrides), None
    own = load_recipe(path, stored=True).recipe
    dropped = [] if resumes else [key for key in OWN if getattr(own.run, key) is not None]
    words = [*(f"run.{key}=null" for key in dropped), *overrides]
    loaded = load_recipe(path, words, stored=True)
    notes = loaded.notes
    said = [f"`run.{key}`" for key in dropped if getattr(loaded.recipe.run, key) is None]
    if said:
        notes = (f"not inherited from `{folder}`: {', '.join(said)}", *notes)
    about = _described(folder)
    recipe = loaded.recipe
    if recipe.data.store == own.data.store:  # else it was named on the command line
        recipe = with_store_found(recipe, about.get("store"))
    if recipe is not loaded.recipe:
        notes = (f"`data.store: {own.data.store}` of this run is `{recipe.data.store}`", *notes)
    name = about.get("recipe")
    name = name if isinstance(name, str) and name else folder.resolve().name
    return replace(loaded, recipe=recipe, name=name, notes=notes), folder


def _described(folder: Path) -> dict[str, Any]:
    """Return what `run.json` says; nothing where it is missing or damaged."""
    with suppress(DataError):
        return read_object(folder / "run.json") or {}
    return {}


def resumes_itself(source: str, kind: str) -> bool:
    """Whether `--resume` of a command continues `source` itself: a run of its own kind.

    `tats finetune runs/x --resume` of a pretraining `runs/x` continues the run that was fine-tuned
    from it.
    """
    from tatscli.engine.checkpoint import find_checkpoint

    return (Path(source) / "checkpoints").is_dir() and find_checkpoint(Path(source)).kind == kind


def shorthand(overrides: Sequence[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return the overrides, with those that have an option of their own put last."""
    # In quotes that no value can break out of: a store may be called `2024` or `a: b`.
    named = [f"{key}={dump_value(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *named]
