"""`key.sub=value` changes to a recipe, applied to the plain mapping before it is validated."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from tatscli.errors import RecipeError
from tatscli.recipe.keys import Items, Keys, Kinds, Node, child, chosen, dotted, fields_of, unknown
from tatscli.recipe.schema import Recipe, Section
from tatscli.recipe.text import parse_value


class OverrideError(ValueError):
    """One override cannot be applied.

    Args:
        message: Says why.
        keys: The key that does not exist, where that is the reason.
    """

    def __init__(self, message: str, keys: Keys = ()) -> None:
        super().__init__(message)
        self.keys = keys


def apply_override(mapping: dict[str, Any], override: str) -> tuple[Keys, str | None]:
    """Change `mapping` in place.

    Keys the recipe leaves out start from their defaults, so `head.depth=2` needs no `head` in the
    file. A new `kind` keeps the keys that both kinds know and drops the others.

    Args:
        mapping: The recipe as plain values.
        override: `key.sub=value`; numbers index into lists, the value is YAML.

    Returns:
        The keys that were set, and a note if something was dropped.

    Raises:
        OverrideError: If the override is malformed or its key does not exist.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise OverrideError(f"`{override}` is not an override; write `key.sub=value`")
    if not text.strip():
        raise OverrideError(f"`{override}` has no value; write `{name}=null` for none")
    try:
        value = parse_value(text)
    except RecipeError as error:
        raise OverrideError(f"`{override}`: {error.message}") from None
    steps = name.strip().split(".")
    node: Node = Recipe
    here: Any = mapping
    keys: Keys = ()
    for step in steps[:-1]:
        here, node, keys = _enter(here, node, keys, step)
    return _assign(here, node, keys, steps[-1], value)


def _enter(here: Any, node: Node, keys: Keys, step: str) -> tuple[Any, Node, Keys]:
    """Go one key down, filling in the default of a section that the recipe leaves out."""
    if isinstance(node, Items):
        index = _index(here, keys, step)
        return here[index], node.item, (*keys, index)
    section = _section(here, node, keys, step)
    below = child(section, step)
    if below is not None and here.get(step) is None:
        here[step] = _default(section, step)
    return here.get(step), below, (*keys, step)


def _assign(here: Any, node: Node, keys: Keys, step: str, value: Any) -> tuple[Keys, str | None]:
    """Set the last key."""
    if isinstance(node, Items):
        index = _index(here, keys, step)
        here[index] = value
        return (*keys, index), None
    note = None
    if step == "kind" and isinstance(node, Kinds) and isinstance(here, dict):
        note = _drop_foreign(here, node, keys, value)
    else:
        _section(here, node, keys, step)
    here[step] = value
    return (*keys, step), note


def _drop_foreign(here: dict[str, Any], node: Kinds, keys: Keys, kind: Any) -> str | None:
    """Drop the keys that a new kind does not have; an unknown kind is left to validation."""
    section = node.by_name.get(kind) if isinstance(kind, str) else None
    if section is None:
        return None
    foreign = [key for key in here if key not in fields_of(section)]
    for key in foreign:
        del here[key]
    if not foreign:
        return None
    dropped = ", ".join(f"`{dotted((*keys, key))}`" for key in foreign)
    return f"`{dotted((*keys, 'kind'))}={kind}` drops {dropped}, which `{kind}` does not have"


def _section(here: Any, node: Node, keys: Keys, step: str) -> type[Section]:
    """The section that must have the key `step`."""
    where = dotted(keys)
    if node is None:
        raise OverrideError(f"`{where}` holds a plain value; it has no key `{step}`")
    if not isinstance(here, dict):
        raise OverrideError(f"`{where}` is not a section in the recipe; it has no key `{step}`")
    section = chosen(node, here)
    if section is None:
        raise OverrideError(f"`{where}.kind` must be chosen before `{where}.{step}` can be set")
    if step not in fields_of(section):
        raise OverrideError(unknown(section, keys, step), (*keys, step))
    return section


def _index(here: Any, keys: Keys, step: str) -> int:
    count = len(here) if isinstance(here, list) else 0
    if not step.isdecimal() or int(step) >= count:
        allowed = f"0 to {count - 1}" if count else "none: the recipe has no such list"
        raise OverrideError(f"`{dotted((*keys, step))}` needs an index into the list: {allowed}")
    return int(step)


def _default(section: type[Section], key: str) -> Any:
    """The default of a key as plain values a user might have written."""
    default = fields_of(section)[key].get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return _written(default)
    if isinstance(default, (list, tuple)):
        return [_written(item) if isinstance(item, BaseModel) else item for item in default]
    return {}


def _written(model: BaseModel) -> dict[str, Any]:
    kind = {"kind": model.kind} if hasattr(model, "kind") else {}
    return kind | model.model_dump(mode="json", exclude_unset=True)
