"""Recipes that runs and checkpoints keep, perhaps written by another version of tats."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tatscli.errors import CheckpointError
from tatscli.recipe.keys import Keys, dotted
from tatscli.recipe.problems import explain
from tatscli.recipe.schema import Recipe

INDIFFERENT = ("run.", "optim.", "finetune.optim.")
"""How keys begin that say how weights were trained, and nothing about what they compute."""


def read_stored(stored: Any, *, file: Path, wrote: object, warn: Callable[[str], object]) -> Recipe:
    """Read the recipe that a checkpoint keeps.

    A key that this version does not know is left out, with a warning, where it cannot change what
    the weights compute: where it says how they were trained, or is null.

    Args:
        stored: The recipe as JSON.
        file: Where it is, for messages.
        wrote: The version of tats that wrote it, if that is known.
        warn: Told of keys that are left out.

    Raises:
        CheckpointError: If it is no recipe, or has a key that may matter.
    """
    if not isinstance(stored, dict):
        raise CheckpointError(f"`{file}` has no recipe: it is damaged, or not that of a checkpoint")
    recipe, left_out = without_unknown(stored)
    try:
        found = Recipe.model_validate(recipe)
    except ValidationError as error:
        sentence = explain(error.errors(include_url=False))[0][1]
        by = f", which tats {wrote} wrote," if wrote else ""
        raise CheckpointError(
            f"the recipe in `{file}`{by} cannot be read: {sentence}",
            hint="read it with the version of tats that wrote it: `run.json` names it",
        ) from error
    if left_out:
        warn(f"`{file}`: {unknown_words(left_out)}")
    return found


def without_unknown(stored: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a stored recipe without unknown keys that cannot matter, and these keys."""
    recipe, left_out = deepcopy(stored), list[str]()
    while True:
        try:
            Recipe.model_validate(recipe)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        else:
            return recipe, left_out
        unknown = [
            keys
            for one in problems
            if one["type"] == "extra_forbidden"
            for keys, _ in explain([one])
            if _cannot_matter(keys, one["input"])
        ]
        if not unknown:
            return recipe, left_out
        for keys in unknown:
            _remove(recipe, keys)
            left_out.append(f"`{dotted(keys)}`")


def unknown_words(left_out: list[str]) -> str:
    """Say that keys were left out."""
    return (
        f"ignoring keys that this version does not know and that do not change what the weights "
        f"compute: {', '.join(left_out)}"
    )


def _cannot_matter(keys: Keys, value: object) -> bool:
    return value is None or dotted(keys).startswith(INDIFFERENT)


def _remove(recipe: Any, keys: Keys) -> None:
    for key in keys[:-1]:
        recipe = recipe[key]
    del recipe[keys[-1]]
