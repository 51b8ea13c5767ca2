"""`none` and `None` in a recipe, which YAML reads as text and people write for null."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from tatscli.recipe.keys import Items, Keys, Node, child, chosen, dotted, fields_of
from tatscli.recipe.schema import Recipe, Section

_WORDS = ("none", "None", "NONE")


def read_nulls(recipe: dict[str, Any]) -> list[str]:
    """Replace `none` by null, in place, in every key that may be null and has no option `none`.

    Otherwise `finetune.val_split=none` would ask for a split called `none`.

    Args:
        recipe: The recipe as plain values.

    Returns:
        Sentences about what was changed.
    """
    return list(_below(recipe, Recipe, ()))


def _below(value: Any, node: Node, keys: Keys) -> Iterator[str]:
    if isinstance(node, Items) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _below(item, node.item, (*keys, index))
    section = chosen(node, value)
    if section is None or not isinstance(value, dict):
        return
    for key, one in value.items():
        if isinstance(one, str) and one in _WORDS and _may_be_null(section, key):
            value[key] = None
            yield f"`{dotted((*keys, key))}: {one}` is read as null"
        else:
            yield from _below(one, child(section, key), (*keys, key))


def _may_be_null(section: type[Section], key: str) -> bool:
    field = fields_of(section).get(key)
    allowed = set() if field is None else set(_allowed(field.annotation))
    return NoneType in allowed and "none" not in allowed


def _allowed(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, and the options of a literal."""
    inside = get_args(annotation)
    if not inside or get_origin(annotation) in (list, tuple, dict):
        yield get_origin(annotation) or annotation
    elif get_origin(annotation) is Literal:
        yield from inside
    else:
        for one in inside[:1] if get_origin(annotation) is Annotated else inside:
            yield from _allowed(one)
