"""Look up sections and keys of the recipe schema by dotted path."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from tatscli.recipe.schema import Recipe, Section

Key = str | int
Keys = tuple[Key, ...]


@dataclass(frozen=True)
class Kinds:
    """A section that is one of several kinds, selected by its key `kind`."""

    by_name: dict[str, type[Section]]


@dataclass(frozen=True)
class Items:
    """A list of items of the same type."""

    item: Node


Node = type[Section] | Kinds | Items | None
"""A node of the schema; None is a plain value."""


def node_of(annotation: Any) -> Node:
    """Read a type annotation of the schema."""
    alternatives = list(_alternatives(annotation))
    sections = [one for one in alternatives if isinstance(one, type) and issubclass(one, Section)]
    if any("kind" in section.model_fields for section in sections):
        return Kinds({kind_name(section): section for section in sections})
    if sections:
        return sections[0]
    for one in alternatives:
        if get_origin(one) in (list, tuple):
            return Items(node_of(get_args(one)[0]))
    return None


def child(section: type[Section], key: Key) -> Node:
    """The node below a key of a section; None if there is no such key."""
    field = fields_of(section).get(str(key))
    return None if field is None else node_of(field.annotation)


def fields_of(section: type[Section]) -> dict[str, FieldInfo]:
    """The keys of a section as written in recipes, where `from` is allowed, unlike in Python."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def kind_name(section: type[Section]) -> str:
    """The value of `kind` that chooses this section."""
    return str(get_args(section.model_fields["kind"].annotation)[0])


def chosen(node: Node, value: Any) -> type[Section] | None:
    """The section that a value is meant for, if known."""
    if isinstance(node, Kinds):
        kind = value.get("kind") if isinstance(value, dict) else None
        return node.by_name.get(kind) if isinstance(kind, str) else None
    return node if isinstance(node, type) else None


def dotted(keys: Keys) -> str:
    """Write keys as a user would."""
    return ".".join(map(str, keys))


def unknown(section: type[Section], parent: Keys, wrong: str) -> str:
    """Say that a section has no such key, and suggest one.

    The key may belong to another kind of the section; else suggest a similar one of this section,
    one of the same name elsewhere, or list all.
    """
    name = f"`{dotted((*parent, wrong))}`"
    node = _node_at(parent)
    kinds = node.by_name.items() if isinstance(node, Kinds) else ()
    owners = [kind for kind, other in kinds if wrong in fields_of(other)]
    if owners:
        return f"{name} belongs to `kind: {_either(owners)}, and this is `{kind_name(section)}`"
    fields = list(fields_of(section))
    near = get_close_matches(wrong, fields, n=1) or [field for field in fields if wrong in field]
    meant: list[Keys] = [(*parent, field) for field in near]
    meant = meant or _nearest_the_top([keys for keys in _all_keys(Recipe) if keys[-1] == wrong])
    if meant:
        maybe = " or ".join(f"`{dotted(keys)}`" for keys in meant[:3])
        return f"{name} is unknown; did you mean {maybe}?"
    return f"{name} is unknown; its section has {listed(section)}"


def _nearest_the_top(found: list[Keys]) -> list[Keys]:
    """Keep the least nested keys of each top-level section: masks nested in a schedule, or used for
    dropping tokens, repeat the keys of `mask`."""
    found = [keys for keys in found if "drop" not in keys]
    depths = [(keys[0], len(keys)) for keys in found]
    return [keys for keys in found if len(keys) == min(n for top, n in depths if top == keys[0])]


def listed(section: type[Section]) -> str:
    """List the keys of a section."""
    return ", ".join(f"`{field}`" for field in fields_of(section))


def kind_at(mapping: Any, keys: Keys) -> tuple[Keys, type[Section]] | None:
    """The innermost section with a `kind` on the way to some keys of a recipe, and where it is."""
    found = None
    node: Node = Recipe
    here = mapping
    for place in range(len(keys) + 1):
        section = chosen(node, here)
        if isinstance(node, Kinds) and section is not None:
            found = keys[:place], section
        if place == len(keys):
            break
        key = keys[place]
        node = node.item if isinstance(node, Items) else child(section, key) if section else None
        try:
            here = here[key]
        except (LookupError, TypeError):  # not written, or a plain value where a section belongs
            here = None
    return found


def _node_at(keys: Keys) -> Node:
    """What lies at some keys, whatever the kinds on the way to them."""
    nodes: list[Node] = [Recipe]
    for key in keys:
        below: list[Node] = []
        for node in nodes:
            sections = node.by_name.values() if isinstance(node, Kinds) else [node]
            below += [child(one, key) for one in sections if isinstance(one, type)]
            below += [node.item] if isinstance(node, Items) else []
        nodes = [node for node in below if node is not None]
    return nodes[0] if nodes else None


def _either(names: list[str]) -> str:
    """Write "a`, `b` or `c`", to follow an opening backtick."""
    *most, last = names
    return ("`, `".join(most) + "` or `" if most else "") + last + "`"


def _all_keys(section: type[Section], parent: Keys = ()) -> Iterator[Keys]:
    """Every key of the schema once; lists are shown by their first item."""
    seen: set[Keys] = set()
    for name, field in fields_of(section).items():
        keys: Keys = (*parent, name)
        node = node_of(field.annotation)
        if isinstance(node, Items):
            node, keys = node.item, (*keys, 0)
        below = node.by_name.values() if isinstance(node, Kinds) else [node]
        found = [keys] if node is None or isinstance(node, Items) else []
        for one in below:
            if isinstance(one, type):
                found += _all_keys(one, keys)
        for one_keys in found:
            if one_keys not in seen:
                seen.add(one_keys)
                yield one_keys


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Take unions and `Annotated` apart."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    elif origin is not Literal:
        yield annotation


def differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted keys by which two recipes, as plain values, differ, and both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{path}.{place}")
    elif before != now:
        yield path, before, now
