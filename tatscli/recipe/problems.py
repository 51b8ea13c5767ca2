"""Turn pydantic errors into sentences that name the key, the value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from tatscli.recipe.keys import Items, Keys, Kinds, Node, child, dotted, fields_of, node_of, unknown
from tatscli.recipe.schema import Recipe, Section

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

# What a value must be, by pydantic's error type; other types keep pydantic's wording.
_MUST_BE: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "string_type": lambda _: "text; put quotes around it",
    "string_pattern_mismatch": lambda context: f"`{_spelled(context['pattern'])}`",
    "bool_type": lambda _: "`true` or `false`",
    "list_type": lambda _: "a list",
    "tuple_type": lambda _: "a list",
    "model_type": lambda _: "a section with keys",
    "greater_than": lambda context: f"greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']:g}",
    "less_than": lambda context: f"less than {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']:g}",
    "too_short": lambda context: f"a list of at least {context['min_length']}",
    "too_long": lambda context: f"a list of at most {context['max_length']}",
}


def explain(errors: Iterable[ErrorDetails]) -> list[tuple[Keys, str]]:
    """Describe each problem once, with its keys.

    Pydantic reports a value that fits none of several types once per type: join these.
    """
    found: dict[Keys, list[str]] = {}
    for error in errors:
        keys, owner = _locate(error["loc"])
        keys, start, rest = _describe(error, keys, owner)
        sentences = found.setdefault(keys, [])
        same_start = [index for index, known in enumerate(sentences) if known.startswith(start)]
        if start and same_start:
            allowed, mark, meant = sentences[same_start[0]].partition("; did you mean ")
            sentences[same_start[0]] = f"{allowed} or {rest}{mark}{meant}"
        else:
            sentences.append(start + rest)
    return [(keys, sentence) for keys, sentences in found.items() for sentence in sentences]


def _spelled(pattern: str) -> str:
    """Write a pattern of a recipe key for humans: `cuda:N`."""
    return pattern.strip("^$").replace("[0-9]+", "N")


def _locate(location: tuple[str | int, ...]) -> tuple[Keys, type[Section]]:
    """Remove the names of union members from a location; return the keys and the last section."""
    keys: Keys = ()
    node: Node = Recipe
    owner: type[Section] = Recipe
    for part in location:
        if isinstance(node, Kinds):
            node = node.by_name[str(part)]
            continue
        if node is None and not isinstance(part, int):
            break  # the name of one of the types a plain value may have
        keys = (*keys, part)
        if isinstance(node, type):
            owner = node
            node = child(node, part)
        elif isinstance(node, Items):
            node = node.item
    return keys, owner


def _describe(error: ErrorDetails, keys: Keys, owner: type[Section]) -> tuple[Keys, str, str]:
    """The keys, and a sentence in two parts: what is wrong, what is allowed."""
    context, value = error.get("ctx", {}), error["input"]
    name = dotted(keys)
    match error["type"]:
        case "value_error":
            return keys, "", (f"`{name}`: " if keys else "") + str(context["error"])
        case "extra_forbidden":
            return keys, "", unknown(owner, keys[:-1], str(keys[-1]))
        case "missing" if isinstance(keys[-1], int):
            return keys[:-1], "", f"`{dotted(keys[:-1])}: {_show(value)}` has too few items"
        case "missing":
            return keys, f"`{name}` is missing", _purpose(owner, str(keys[-1]))
        case "union_tag_not_found" | "union_tag_invalid" | "literal_error":
            return _describe_choice(error, keys, owner)
    start = f"`{name}: {_show(value)}` must be "
    known = _MUST_BE.get(error["type"])
    if known is not None:
        return keys, start, known(context)
    return keys, start, error["msg"].removeprefix("Input should be ")


def _describe_choice(
    error: ErrorDetails, keys: Keys, owner: type[Section]
) -> tuple[Keys, str, str]:
    """A value out of a short list of allowed ones."""
    context = error["ctx"]
    if error["type"] == "literal_error":
        options = [one.strip("'") for one in context["expected"].replace(" or ", ", ").split(", ")]
        value = error["input"]
    else:
        options, value = _kinds(owner, keys), context.get("tag")
        keys = (*keys, "kind")
    allowed = ", ".join(f"`{option}`" for option in options)
    allowed = f"one of {allowed}" if len(options) > 1 else allowed
    if error["type"] == "union_tag_not_found":
        return keys, "", f"`{dotted(keys)}` is missing; it must be {allowed}"
    near = get_close_matches(str(value), options, n=1)
    meant = f"; did you mean `{near[0]}`?" if near else ""
    return keys, f"`{dotted(keys)}: {_show(value)}` must be ", allowed + meant


def _kinds(owner: type[Section], keys: Keys) -> list[str]:
    """The kinds a section may have; `keys` end in a field of `owner` or an item of its list."""
    field = keys[-1] if isinstance(keys[-1], str) else keys[-2]
    node = node_of(fields_of(owner)[str(field)].annotation)
    if isinstance(node, Items):
        node = node.item
    return list(node.by_name) if isinstance(node, Kinds) else []


def _purpose(owner: type[Section], key: str) -> str:
    description = fields_of(owner)[key].description
    return f": {description.splitlines()[0].rstrip('.')}" if description else ""


def _show(value: object) -> str:
    """A value as a user would write it, truncated."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
