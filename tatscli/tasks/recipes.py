"""From what stands on the command line to a recipe: a file, a shipped name, or a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tatscli.errors import UsageError
from tatscli.recipe.load import LoadedRecipe, load_recipe
from tatscli.recipe.text import dump_value
from tatscli.weights.paths import is_foreign


def open_recipe(source: str, overrides: Sequence[str]) -> tuple[LoadedRecipe, Path | None]:
    """Load the recipe that `source` means, and say which run folder it is, if it is one.

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
    if (folder / "recipe.yaml").is_file():
        loaded = load_recipe(folder / "recipe.yaml", overrides)
        return replace(loaded, name=folder.resolve().name), folder
    return load_recipe(source, overrides), None


def shorthand(overrides: Sequence[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return the overrides, with those that have an option of their own put last."""
    # In quotes that no value can break out of: a store may be called `2024` or `a: b`.
    named = [f"{key}={dump_value(value)}" for key, value in options.items() if value is not None]
    return [*(overrides or []), *named]
