"""From what stands on the command line to a recipe: a file, a shipped name, or a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tatscli.errors import UsageError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.text import dump_value
from tatscli.weights.paths import is_foreign

OWN = ("out", "max_steps", "watch")
"""Keys of `run` that belong to the run they were given for: where it went, how far a trial went,
what was held out to look at."""


def open_recipe(
    source: str, overrides: Sequence[str], *, resumes: bool = False
) -> tuple[LoadedRecipe, Path | None]:
    """Load the recipe that `source` means, and say which run folder it is, if it is one.

    A new run does not inherit what a run folder's recipe says of that run alone; a note of the
    loaded recipe says what was dropped.

    Args:
        source: A run folder, a file, or the name of a shipped recipe.
        overrides: Changes of the form `key.sub=value`.
        resumes: The run folder is to be continued, so that all of its recipe stays.

    Raises:
        RecipeError: With every problem found.
        UsageError: If it is weights of others, which have no recipe to train by.
    """
    folder = Path(source)
    if is_foreign(folder):
        raise UsageError(
            f"`{source}` holds weights that another program wrote, and no recipe to train by",
            hint=f"name a recipe and start from them: `tats finetune RECIPE --init {source}`",
        )
    path = folder / "recipe.yaml"
    if not path.is_file():
        return load_recipe(source, overrides), None
    dropped: list[str] = []
    if not resumes:
        own = load_recipe(path, stored=True).recipe.run
        dropped = [key for key in OWN if getattr(own, key) is not None]
    words = [*(f"run.{key}=null" for key in dropped), *overrides]
    loaded = load_recipe(path, words, stored=True)
    notes = loaded.notes
    said = [f"`run.{key}`" for key in dropped if getattr(loaded.recipe.run, key) is None]
    if said:
        notes = (f"not taken over from `{folder}`: {', '.join(said)}", *notes)
    return replace(loaded, name=folder.resolve().name, notes=notes), folder


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
