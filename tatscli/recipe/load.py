"""Load a recipe: YAML, overrides, typed model; all problems are reported at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tatscli.errors import RecipeError
from tatscli.recipe.keys import Keys, dotted, kind_at, kind_name, listed
from tatscli.recipe.nulls import read_nulls
from tatscli.recipe.overrides import OverrideError, apply_override
from tatscli.recipe.problems import explain
from tatscli.recipe.published import bring_published
from tatscli.recipe.schema import Recipe
from tatscli.recipe.shipped import shipped, shipped_name
from tatscli.recipe.stored import unknown_words, without_unknown
from tatscli.recipe.text import Document, dump_recipe, parse


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A valid recipe and where it came from.

    Args:
        recipe: The typed recipe, overrides included.
        name: The file's stem, or the shipped name with dashes (`mgm-ssv2`).
        source: The file.
        merged: The file's own keys with the overrides, before defaults; plain values.
        notes: Side effects of overrides, to be shown to the user.
    """

    recipe: Recipe
    name: str
    source: Path
    merged: dict[str, Any]
    notes: tuple[str, ...] = ()


def load_recipe(
    source: str | Path, overrides: Sequence[str] = (), *, stored: bool = False
) -> LoadedRecipe:
    """Read a recipe and apply overrides.

    Args:
        source: A YAML file, or the name of a shipped recipe such as `ucf101`.
        overrides: Changes of the form `key.sub=value`, applied in order.
        stored: It is the `recipe.yaml` of a run, perhaps written by another version: unknown keys
            that cannot matter are left out, and a note says so.

    Raises:
        RecipeError: If there is no such recipe; or with every problem in it and in the overrides.
    """
    path = _find(source)
    recipe, merged, notes = _merge(_read(path), path, overrides, published=True, stored=stored)
    name = (shipped_name(path) or path.stem).replace("/", "-")
    return LoadedRecipe(recipe, name, path, merged, notes)


def override_recipe(recipe: Recipe, overrides: Sequence[str], *, origin: Path) -> Recipe:
    """Apply overrides to the recipe of a run or checkpoint; `origin` is named in messages.

    A new mask keeps the keys that it shares with the old one, so that results stay comparable.

    Raises:
        RecipeError: With every problem in the overrides.
    """
    return _merge(dump_recipe(recipe), origin, overrides)[0] if overrides else recipe


def with_store_found(recipe: Recipe, recorded: object) -> Recipe:
    """Return a run's recipe with its store where the run found it, if the path is relative and
    leads nowhere from here.

    Args:
        recipe: The recipe of a run.
        recorded: What the run wrote down as the absolute path of its store, if it did.
    """
    here = Path(recipe.data.store)
    if here.is_absolute() or here.exists() or not isinstance(recorded, str):
        return recipe
    if not Path(recorded).is_absolute() or not Path(recorded).is_dir():
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"store": recorded})})


def with_protocol(recipe: Recipe, source: str | Path) -> Recipe:
    """Take store, sampling, views and probes from another recipe, for weights that have none.

    What the weights determine stays: frames, size, mean, standard deviation, classification head.

    Raises:
        RecipeError: If there is no such recipe, or it is wrong.
    """
    protocol = load_recipe(source).recipe
    own = {key: getattr(recipe.data, key) for key in ("frames", "size", "mean", "std")}
    data = protocol.data.model_copy(update=own)
    form = {key: getattr(recipe.finetune, key) for key in ("head", "heads")}
    finetune = protocol.finetune.model_copy(update=form)
    changed = {"data": data, "finetune": finetune, "evaluate": protocol.evaluate}
    return recipe.model_copy(update=changed)


def _merge(
    text: str,
    path: Path,
    overrides: Sequence[str],
    *,
    published: bool = False,
    stored: bool = False,
) -> tuple[Recipe, dict[str, Any], tuple[str, ...]]:
    """Read YAML, apply overrides and their side effects, and validate; return recipe, merged
    mapping and notes."""
    document = parse(text, str(path))
    if not isinstance(document.value, dict):
        what = "empty" if document.value is None else "not a mapping of sections"
        raise RecipeError(f"`{path}` is {what}", hint="`tats recipes show ucf101` is an example")
    merged = _plain(document.value, path)
    notes: list[str] = []
    if stored:
        merged, left_out = without_unknown(merged)
        notes += [f"`{path}`: {unknown_words(left_out)}"] if left_out else []
    before = deepcopy(merged)
    problems: list[tuple[Keys, str]] = []
    overridden: set[Keys] = set()
    for override in overrides:
        try:
            keys, note = apply_override(merged, override)
        except OverrideError as error:
            problems.append((error.keys, str(error)))
            continue
        overridden.add(keys)
        notes += [note] if note else []
    notes += read_nulls(merged)
    if published and not problems:
        notes += bring_published(merged, before, overridden)
    return _validate(merged, document, overridden, problems, path), merged, tuple(notes)


def _find(source: str | Path) -> Path:
    """The file a recipe argument means: a file first, then a shipped name."""
    path = Path(source)
    if path.is_file():
        return path
    known = {recipe.name: recipe.path for recipe in shipped()}
    if str(source) in known:  # also beside a folder of that name, which may hold the videos
        return known[str(source)]
    if path.is_dir():
        raise RecipeError(
            f"`{source}` is a folder, not a recipe",
            hint=f"name a file, such as `{path / 'recipe.yaml'}`",
        )
    stem = path.with_suffix("").as_posix().removeprefix("recipes/")
    near = [stem] if stem in known else get_close_matches(stem, known, n=1)
    meant = f"did you mean `{near[0]}`? " if near else ""
    raise RecipeError(
        f"no recipe `{source}`: neither a file nor the name of a shipped recipe",
        hint=f"{meant}shipped: " + ", ".join(f"`{name}`" for name in known),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{path}` is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise RecipeError(f"`{path}` cannot be read: {error.strerror}") from None


def _plain(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """Copy YAML values as plain JSON ones: aliases become copies, dates become text."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):  # a key that is a list, an alias inside itself
        raise RecipeError(
            f"`{path}` uses YAML that is not allowed in a recipe: an alias that contains itself, or"
            " a key that is not text"
        ) from None
    return plain


def _validate(
    merged: dict[str, Any],
    document: Document,
    overridden: set[Keys],
    problems: list[tuple[Keys, str]],
    path: Path,
) -> Recipe:
    """Build the typed recipe, or raise with all problems; those of the file first, by line."""
    recipe = None
    in_file = list(document.problems)
    after = [sentence for _, sentence in problems]
    places = [keys for keys, _ in problems]
    try:
        # As JSON, so that validation can be strict about types and still read lists as tuples.
        recipe = Recipe.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        for keys, sentence in explain(error.errors(include_url=False)):
            places.append(keys)
            line = None if _starts(keys) & overridden else _line(document, keys)
            if line is None:
                after.append(sentence)
            else:
                in_file.append((line, sentence))
    said = [f"line {line}: {sentence}" for line, sentence in sorted(in_file)] + after
    if said or recipe is None:
        count = "a problem" if len(said) == 1 else f"{len(said)} problems"
        raise RecipeError(
            f"recipe `{path}` has {count}\n" + "\n".join(f"  - {problem}" for problem in said),
            hint=_keys_to_choose(merged, places),
        )
    return recipe


def _keys_to_choose(merged: dict[str, Any], places: list[Keys]) -> str:
    """Say what keys there are: those of the kinds that the problems are in, or a whole recipe."""
    found = dict.fromkeys(kind_at(merged, keys) for keys in places)
    hints = [
        f"`{dotted(one[0])}` of `kind: {kind_name(one[1])}` has {listed(one[1])}"
        for one in found
        if one is not None
    ]
    if None in found or not hints:
        hints.append("`tats recipes show ucf101 --merged` shows a whole recipe, defaults included")
    return "; ".join(hints)


def _line(document: Document, keys: Keys) -> int | None:
    """The line of a key in the file, or of the section it is missing from."""
    for length in range(len(keys), 0, -1):
        if keys[:length] in document.lines:
            return document.lines[keys[:length]]
    return None


def _starts(keys: Keys) -> set[Keys]:
    return {keys[:length] for length in range(1, len(keys) + 1)}
