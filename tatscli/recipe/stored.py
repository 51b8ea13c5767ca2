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
    recipe, left_out = deepcopy(stored), list[str]()
    while True:
        try:
            found = Recipe.model_validate(recipe)
        except ValidationError as error:
            found, problems = None, error.errors(include_url=False)
        if found is not None:
            break
        unknown = [
            keys
            for one in problems
            if one["type"] == "extra_forbidden"
            for keys, _ in explain([one])
            if _cannot_matter(keys, one["input"])
        ]
        if not unknown:
            sentence = explain(problems)[0][1]
            by = f", which tats {wrote} wrote" if wrote else ""
            raise CheckpointError(
                f"the recipe in `{file}`{by}, cannot be read by this version: {sentence}"
                if by
                else f"the recipe in `{file}` cannot be read: {sentence}",
                hint="read it with the version of tats that wrote it: `run.json` names it",
            )
        for keys in unknown:
            _remove(recipe, keys)
            left_out.append(f"`{dotted(keys)}`")
    if left_out:
        warn(
            f"`{file}`: this version does not know {', '.join(left_out)}; left out, for the "
            "weights compute the same without"
        )
    return found


def _cannot_matter(keys: Keys, value: object) -> bool:
    return value is None or dotted(keys).startswith(INDIFFERENT)


def _remove(recipe: Any, keys: Keys) -> None:
    for key in keys[:-1]:
        recipe = recipe[key]
    del recipe[keys[-1]]
